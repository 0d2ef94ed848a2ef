"""People's own pairs and rankings, as JSON Lines or parquet with images beside, to folders of shards.

A line or row has `query` and `query_image`, and for training `target`, `target_image`, `negatives` and
`negative_images`, for evaluation
`candidates` and `candidate_images`, the right one first. Texts and images may be missing, but not both. `bbox` ([x, y,
width, height] in
pixels) and `segmentation` (COCO's) say which region of its image a query means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.conversion.grouped_parquet import column_names
from virtue_pl.data.conversion.json_lines import to_parquet
from virtue_pl.data.conversion.mmeb import MMEBFile
from virtue_pl.data.conversion.source_file import Progress, Settings, convert, licence_of, silent
from virtue_pl.data.formats.mmeb import RowImages, pair_row, ranking_row
from virtue_pl.data.formats.scar import run_lengths, xyxy
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.preprocessing.images import MAX_PIXELS, read_header
from virtue_pl.types import DataError, VirtueError

QUERY = ("query", "query_image")
TARGET = ("target", "target_image")
CANDIDATES = ("candidates", "candidate_images")
NEGATIVES = ("negatives", "negative_images")
REGION = ("bbox", "segmentation")

_TYPES = {"bbox": pa.list_(pa.float64()), **dict.fromkeys((*CANDIDATES, *NEGATIVES), pa.list_(pa.string()))}
SCHEMA = pa.schema(
    [(name, _TYPES.get(name, pa.string())) for name in (*QUERY, *TARGET, *CANDIDATES, *NEGATIVES, *REGION)]
)
"""Of JSON Lines; a segmentation is kept as JSON."""


@dataclass(frozen=True)
class PairFile(MMEBFile):
    """One such file. Rows share a record as MMEB's do."""

    @property
    def needed(self) -> Sequence[str]:
        return ()

    def optional(self, found: Sequence[str]) -> list[str]:
        return [name for name in SCHEMA.names if name in found]

    @property
    def grouped_by(self) -> tuple[str, ...]:
        found = column_names(self.table)
        return tuple(
            name
            for name in ("query_image", TARGET[1] if self.kind == "pairs" else CANDIDATES[1], "query")
            if name in found
        )

    def record_key(self, *values: Any) -> str:
        named = dict(zip(self.grouped_by, values, strict=True))
        return super().record_key(
            named.get("query_image"), named.get(TARGET[1]) or named.get(CANDIDATES[1]), named.get("query")
        )

    def to_row(self, row: Mapping[str, Any], key: str, number: int, book: RowImages) -> dict[str, Any]:
        texts = {
            "qry": row.get("query"),
            "qry_image_path": row.get("query_image"),
            "qry_text": row.get("query"),
            "qry_img_path": row.get("query_image"),
        }
        if self.kind == "rankings":
            stored = ranking_row(
                {**texts, "tgt_text": row.get("candidates"), "tgt_img_path": row.get("candidate_images")},
                key,
                number,
                book,
            )
        else:
            target = {"pos_text": row.get("target"), "pos_image_path": row.get("target_image")}
            negatives = {"neg_text": row.get("negatives"), "neg_image_path": row.get("negative_images")}
            stored = pair_row({**texts, **target, **negatives}, key, number, book)
        return {**stored, **region(row, stored["query"][1], book, key)}


def region(row: Mapping[str, Any], image: int | None, book: RowImages, key: str) -> dict[str, Any]:
    """The stored region of the query's image; empty where the row names none. Raises DataError for a region of no
    image.
    """
    if row.get("bbox") is None:
        if row.get("segmentation"):
            raise DataError(key, "no box: a segmentation alone, expected bbox beside it")
        return {}
    if image is None:
        raise DataError(key, "box without an image: the query has none")
    header = read_header(book.images[image][0], key, book.max_pixels)
    size = (header.height, header.width)
    return {"box": xyxy(row["bbox"], key, size), "mask": run_lengths(row.get("segmentation"), key, size)}


def find_files(root: Path, tables: Path, images: Sequence[Path] = ()) -> Iterator[PairFile]:
    """The files in `root`; those of JSON Lines become parquet files in the folder `tables`. Raises VirtueError if there
    are none, or columns lack.
    """
    found = sorted(
        path for path in root.glob("*") if path.suffix in (".jsonl", ".parquet") and not path.name.startswith(".")
    )
    if not found:
        raise VirtueError(f"--root {root}: found neither *.jsonl nor *.parquet")
    stems = [path.stem for path in found]
    for path in found:
        if stems.count(path.stem) > 1:
            raise VirtueError(
                f"{path}: another file has the same name, {path.stem}, expected one for each folder of shards:"
                " rename one"
            )
        table = path if path.suffix == ".parquet" else tables / f"{path.stem}.parquet"
        if table is not path:
            to_parquet(path, table, SCHEMA, (QUERY, (*TARGET, *CANDIDATES)))
        kind = "rankings" if _ranks(path, table) else "pairs"
        yield PairFile(path, ImageFiles.below(root, given=images), kind, path.stem, path.stem, "own", rows_in=table)


def _ranks(path: Path, table: Path) -> bool:
    """Whether the rows are for evaluation. Raises VirtueError where neither kind's columns are there."""
    names = column_names(table)
    if not set(QUERY) & set(names) or not {*TARGET, *CANDIDATES} & set(names):
        raise VirtueError(
            f"{path} lacks query or query_image, or target, target_image, candidates or candidate_images; it has"
            f" {', '.join(names)}"
        )
    if table == path:
        return bool(set(CANDIDATES) & set(names))
    found = pq.read_table(table, columns=list(CANDIDATES))
    return any(found.column(name).null_count < len(found) for name in CANDIDATES)


def convert_pairs(
    root: str | Path,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    images_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = silent,
    workers: int = 1,
) -> dict[str, Manifest]:
    """Writes OUT/NAME for every NAME.jsonl and NAME.parquet in `root`, whose images lie in `root`/images or in the
    folders `images`, see `convert`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or licence_of(root, "not stated"), max_pixels)
    with TemporaryDirectory(prefix="virtue-pl-") as tables:
        return convert(
            list(find_files(root, Path(tables), tuple(map(Path, images)))), Path(out), settings, progress, workers
        )
