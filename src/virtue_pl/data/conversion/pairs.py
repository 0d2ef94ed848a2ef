"""One's own pairs and rankings, in any of the forms of `own_sources`, to folders of shards.

The columns are those of `data/formats/own_rows.schema.json`. Whatever a row may cause leaves out that row alone, with
the words by which it is found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import UInt8

from virtue_pl.data.conversion.grouped_parquet import Group
from virtue_pl.data.conversion.mmeb import MMEBFile
from virtue_pl.data.conversion.own_sources import OwnSource, find_sources
from virtue_pl.data.conversion.own_table import TABLE, EmbeddedImages, printable, write_table
from virtue_pl.data.conversion.parallel_records import RecordSink
from virtue_pl.data.conversion.source_file import Progress, Settings, convert, no_progress, read_licence
from virtue_pl.data.formats.candidates import check_candidates, drop_gold_repeats
from virtue_pl.data.formats.mmeb import Item, RowImages
from virtue_pl.data.formats.own_regions import OwnRegion, read_region
from virtue_pl.data.formats.own_rows import OwnItem, OwnRow, RowOptions
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.preprocessing.images import MAX_PIXELS, decode, read_header
from virtue_pl.types import DataError, VirtueError

RULES = 3
"""Number of the rules by which own rows become records, as `input_digests.CONVERSION` is for all formats."""


@dataclass(frozen=True)
class PairFile(MMEBFile):
    """A source of own pairs or rankings. Rows share a record as MMEB's do.

    Example:
        >>> (file,) = find_files(Path("my_pairs"), tables=Path("tables"))  # doctest: +SKIP
        >>> file.kind, file.name  # doctest: +SKIP
        ('pairs', 'train')
    """

    source: OwnSource | None = None
    """Source that the table was made from."""
    row_options: RowOptions = RowOptions()

    def source_digest(self) -> str:
        found = super().source_digest() if self.source is None else self.source.digest()
        stated = self.row_options.fingerprint_text
        return f"{found} {stated}" if stated else found

    @property
    def side_inputs(self) -> str:
        return ", ".join(filter(None, (super().side_inputs, f"own rows {RULES}", self.row_options.fingerprint_text)))

    @property
    def required_columns(self) -> Sequence[str]:
        return tuple(TABLE.names)

    def optional_columns(self, found: Sequence[str]) -> list[str]:
        return []

    @property
    def group_columns(self) -> tuple[str, ...]:
        return ("query_image", "target_images" if self.kind == "pairs" else "candidate_images", "query")

    @property
    def image_columns(self) -> Sequence[str]:
        return ("files",)

    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        row_images = RowImages(self.images, max_pixels)
        rows = []
        for number, row in group:
            key = f"{self.name}/{number}"
            try:
                rows.append(self.to_row(row, key, number, row_images))
            except DataError as error:
                writer.skip(DataError(key, f"{error.problem} ({row['where']})"))
            except VirtueError:  # of a whole archive
                raise
            except Exception as error:
                writer.skip(DataError(key, printable(f"unreadable row: {error!r} ({row['where']})")))
        if rows:
            writer.add(row_images.images, row_images.first, rows, list(row_images.numbers))

    def to_row(self, row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
        if row["problem"]:
            raise DataError(key, row["problem"])
        own = OwnRow.from_json(row["content"])
        answers = own.candidates or () if self.kind == "rankings" else tuple(filter(None, [own.target, *own.negatives]))
        self._check(own, key)
        stored = store_items([own.query, *answers], row_images, key)
        prompted = [with_prompt(found, item, row_images, key) for found, item in zip(stored[1:], answers, strict=True)]
        if self.kind == "pairs":
            found = {"row": number, "query": stored[0], "target": prompted[0], "negatives": prompted[1:]}
        else:
            contents = [as_content(candidate, row_images) for candidate in prompted]
            ranking = list(drop_gold_repeats(contents, range(len(contents))))
            found = {"row": number, "query": stored[0], "candidates": prompted, "rankings": {"hit@1": ranking}}
        return {**found, **query_region(own.query, row_images, key)}

    def _check(self, row: OwnRow, key: str) -> None:
        """Raise DataError for a row that lacks what its kind needs, or whose right answer is among the wrong ones."""
        check_item(row.query, "query", key)
        if self.kind == "rankings":
            check_candidates([(item.text, item.images) for item in row.candidates or ()], key)
            check_answers(row, key)
            return
        check_item(row.target or OwnItem(), "target", key)
        if row.target in row.negatives:
            raise DataError(key, f"target repeated among negatives: {row.target.text!r}")  # type: ignore[union-attr]


def check_answers(row: OwnRow, key: str) -> None:
    """Raise DataError for a ranking with another target than its first candidate, or with negatives that it lacks."""
    candidates = row.candidates or ()
    if row.target is not None and row.target != candidates[0]:
        raise DataError(
            key,
            f"target is not the first candidate: {row.target.text!r} and {candidates[0].text!r}, expected candidates"
            " alone, the right one first",
        )
    other = next((item for item in row.negatives if item not in candidates), None)
    if other is not None:
        raise DataError(key, f"negatives beside candidates: {other.text!r} is none of them, expected candidates alone")


def check_item(item: OwnItem, what: str, key: str) -> None:
    """Raise DataError, which names `what`, for an item with neither text nor image."""
    if not item.text and not item.images:
        raise DataError(key, f"missing {what}: both its text and its image are empty")


def store_items(items: Sequence[OwnItem], row_images: RowImages, key: str) -> list[list[Any]]:
    """Return each item as [TEXT, NUMBER OF ITS IMAGE OR NULL], with a list of numbers where it has several images.

    Raises DataError, and adds none of their images, where one is missing or damaged.
    """
    flat: list[Item] = []
    for item in items:
        flat += [(item.text, item.images[0] if item.images else ""), *(("", path) for path in item.images[1:])]
    stored = iter(row_images.store(flat, key))
    found = []
    for item in items:
        text, number = next(stored)
        further = [next(stored)[1] for _ in item.images[1:]]
        found.append([text, [number, *further] if further else number])
    return found


def with_prompt(stored: list[Any], item: OwnItem, row_images: RowImages, key: str) -> list[Any]:
    """Return the stored item with its region as a third entry, where it has one."""
    return [*stored, image_region(item, row_images, key).item_prompt] if item.has_region else stored


def as_content(stored: Sequence[Any], row_images: RowImages) -> tuple[Any, ...]:
    """Return a stored item with its images' bytes in place of their numbers, by which equal ones are found."""
    text, numbers, *prompt = stored
    several = numbers if isinstance(numbers, list) else [] if numbers is None else [numbers]
    return (text, [row_images.images[number][0] for number in several], prompt)


def query_region(query: OwnItem, row_images: RowImages, key: str) -> dict[str, Any]:
    """Return the stored region of the query's image; empty where the row has none."""
    if not query.has_region:
        return {}
    region = image_region(query, row_images, key)
    box = {} if region.box is None else {"box": region.box, "mask": region.mask}
    return {**box, "prompt": region.prompt} if region.prompt else box


def image_region(item: OwnItem, row_images: RowImages, key: str) -> OwnRegion:
    """Return the region of an item's first image. Raises DataError for one that is impossible there."""
    data, _ = row_images.images[row_images.numbers[item.images[0]]]
    header = read_header(data, key, row_images.max_pixels)
    return read_region(item, key, (header.height, header.width), partial(read_levels, row_images, key))


def read_levels(row_images: RowImages, key: str, path: str) -> UInt8[np.ndarray, "3 height width"]:
    """Return the pixels of a mask's file. Raises DataError where it is missing, damaged or too large."""
    data, _ = row_images.files.read_checked(path, key, row_images.max_pixels)
    return decode(data, key, row_images.max_pixels).numpy()


def find_files(
    root: Path, tables: Path, images: Sequence[Path] = (), row_options: RowOptions = RowOptions()
) -> Iterator[PairFile]:
    """Yield the sources in `root`, whose rows become parquet tables in the folder `tables`.

    Raises VirtueError if there are none, or a table has a column that there is not.
    """
    for number, source in enumerate(find_sources(root)):
        table, embedded = tables / f"{number}.parquet", EmbeddedImages(tables / f"embedded {number}")
        kind = write_table(source, table, row_options, embedded)
        found = ImageFiles.find(root, given=images)
        inside = (embedded.folder,) if embedded.digests else ()
        files = replace(found, folders=(*inside, *found.folders, *source.image_folders))
        yield PairFile(
            source.path,
            files,
            kind,
            source.name,
            source.name,
            "own",
            parquet_copy=table,
            source=source,
            row_options=row_options,
        )


def convert_pairs(
    root: str | Path,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    images_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    row_options: RowOptions = RowOptions(),
    progress: Progress = no_progress,
    workers: int = 1,
    kinds: Sequence[str] = ("pairs", "rankings"),
) -> dict[str, Manifest]:
    """Write OUT/NAME for every source NAME in `root` (see `find_sources`), as `convert` does.

    Their images are in `root`/images, in the folders `images`, or inside the tables. `row_options` hold for rows that
    do not say it themselves. Sources of other `kinds` of rows are left alone. The other arguments are those of
    `convert_scar`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or read_licence(root, "not stated"), max_pixels)
    with TemporaryDirectory(prefix="virtue-pl-") as tables:
        found = find_files(root, Path(tables), tuple(map(Path, images)), row_options)
        files = [file for file in found if file.kind in kinds]
        return convert(files, Path(out), settings, progress, workers)
