"""Rows of evaluation sets as queries and candidates to rank; every candidate list stays as it is in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from virtue_pl.data.conversion.grouped_parquet import column_names, readable_parquet
from virtue_pl.data.conversion.mmeb import INSTRUCTION_COLUMNS
from virtue_pl.data.conversion.mmeb import RANKING_COLUMNS as MMEB_COLUMNS
from virtue_pl.data.conversion.scar import RANKING_COLUMNS as SCAR_COLUMNS
from virtue_pl.data.eval_sets.files import SetFiles, mmeb_set_of
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.formats.candidates import check_candidates, drop_gold_repeats
from virtue_pl.data.formats.mmeb import PUBLISHED_TOKEN, read_item, read_items
from virtue_pl.data.formats.mmeb_instructions import to_one_string
from virtue_pl.data.formats.scar import corners, ranked_captions, run_lengths, xyxy
from virtue_pl.data.formats.scar_queries import NO_PROMPT, instruction
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.records import Row, read_region
from virtue_pl.types import (
    IMAGE_TOKEN,
    CompactRegion,
    DataError,
    EmbeddingInput,
    EvaluationRow,
    Region,
    SetDescription,
    VirtueError,
    VisualPrompt,
)

_BOX_TEXT = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")
ROWS_PER_READ = 64


class RowReader:
    """Reads rows of evaluation files; equal inputs of different rows are one object.

    Args:
        library: the images, by content.
        check: raises VirtueError for an input that the model cannot read; its images have shapes, and no pixels.

    Example:
        >>> reader = RowReader(ImageLibrary())
        >>> reader.input("a cat", None) is reader.input("a cat", None)
        True
    """

    def __init__(self, library: ImageLibrary, check: Callable[[EmbeddingInput], object] | None = None) -> None:
        self.library = library
        self.check = check
        self._inputs: dict[tuple[str, tuple[str, ...]], EmbeddingInput] = {}
        self._paths: dict[ImageFiles, dict[str, str]] = {}

    def read(
        self, files: SetFiles, limit: int | None = None, leave_out: Callable[[DataError], object] | None = None
    ) -> Iterator[EvaluationRow]:
        """Yield the rows of official parquet files, in order.

        One that cannot be ranked is told to `leave_out`, as an error that names set and row; or else that is raised.
        """
        scar = files.about.benchmark.startswith("scar")
        for number, row in enumerate(table_rows(files, SCAR_COLUMNS if scar else MMEB_COLUMNS)):
            if limit is not None and number >= limit:
                return
            try:
                found = self.scar_row(files, number, row) if scar else self.mmeb_row(files, number, row)
            except DataError as error:
                if leave_out is None:
                    raise
                leave_out(error)
            else:
                yield found

    def scar_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        """Return a row of SCaR's columns."""
        key = row_name(files.about, number)
        assert files.images is not None
        image = self.library.add_path(files.images, row["qry_image_path"], key)
        captions, rankings = ranked_captions(row, key)
        check_query(row["qry_text"], key)
        size = self.library.sizes[image]
        box, mask = xyxy(row["bbox"], key, size), run_lengths(row.get("segmentation"), key, size)
        region = read_region(Row(key, files.about.name, {"box": box, "mask": mask}), size)
        box_text = box_words(corners(row["bbox"]))
        return self.region_row(files.about, number, row["qry_text"], box_text, image, region, captions, rankings)

    def region_row(
        self,
        about: SetDescription,
        number: int,
        query: str,
        box_text: str,
        image: str,
        region: Region,
        captions: Sequence[str],
        rankings: Mapping[str, tuple[int, ...]],
    ) -> EvaluationRow:
        """Return a row about a region; `box_text` is the box as published queries write it, `image` the image's key."""
        check_query(query, row_name(about, number))
        text = PUBLISHED_TOKEN.sub("", _BOX_TEXT.sub("", query))
        self.check_readable(instruction(query), (image,), row_name(about, number))
        published = IMAGE_TOKEN + f"  {text}".replace(" \n", "\n")
        candidates = tuple(self.input(caption, None) for caption in captions)
        return EvaluationRow(
            about.name,
            number,
            instruction(query),
            published,
            box_text,
            image,
            self.library.sizes[image],
            CompactRegion.pack(region),
            candidates,
            rankings,
        )

    def mmeb_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        """Return a row of MMEB's columns, in either form."""
        key = row_name(files.about, number)
        if "qry_inst" in row:
            row = to_one_string(row, mmeb_set_of(files.about), key)
        text, query_path = read_item(row["qry_text"], row["qry_img_path"], "query", key)
        found = read_items(row["tgt_text"], row["tgt_img_path"], "candidates", key)
        check_candidates(found, key)
        query_image = self._image_key(files, query_path, key)
        key_by_path = self._paths.setdefault(files.images, {}) if files.images is not None else {}
        images = [key_by_path.get(path) or self._image_key(files, path, key) for _, path in found]
        key_by_path |= {path: image for (_, path), image in zip(found, images, strict=True) if image is not None}
        candidates = [(text, image) for (text, _), image in zip(found, images, strict=True)]
        return self.row(files.about, number, (text, query_image), candidates)

    def row(
        self,
        about: SetDescription,
        number: int,
        query: tuple[str, str | None],
        candidates: Sequence[tuple[str, str | None]],
        rankings: Mapping[str, tuple[int, ...]] | None = None,
    ) -> EvaluationRow:
        """Return a row without a region: texts as MMEB writes them, images by their keys."""
        check_candidates(candidates, row_name(about, number))
        key, (text, image) = row_name(about, number), query
        ranked = tuple(self.input(text, image, key) for text, image in candidates)
        return self.ranked_row(about, number, self.input(text, image, key), ranked, rankings)

    def ranked_row(
        self,
        about: SetDescription,
        number: int,
        query: EmbeddingInput,
        candidates: tuple[EmbeddingInput, ...],
        rankings: Mapping[str, tuple[int, ...]] | None = None,
        region: Region | None = None,
        box_text: str = "",
    ) -> EvaluationRow:
        """Return a row of inputs, whose images are keys; region: of the query's first image.

        Raises DataError for a query with neither text nor image.
        """
        if not query.text and not query.image_keys:
            raise DataError(row_name(about, number), "missing query: both its text and its image are empty")
        image, further = (query.image_keys[0], query.image_keys[1:]) if query.image_keys else (None, ())
        size = None if image is None else self.library.sizes[image]
        rankings = {
            name: without_gold_repeats(candidates, indices)
            for name, indices in (rankings or {"hit@1": all_indices(len(candidates))}).items()
        }
        text, compact = query.text, None if region is None else CompactRegion.pack(region)
        return EvaluationRow(
            about.name, number, text, text, box_text, image, size, compact, candidates, rankings, further
        )

    def input(
        self, text: str, images: str | tuple[str, ...] | None, key: str = "", prompt: VisualPrompt = NO_PROMPT
    ) -> EmbeddingInput:
        """Return the input of a text and its images' keys, one object for equal ones without a prompt.

        Raises DataError for more image tokens than images.
        """
        images = () if images is None else (images,) if isinstance(images, str) else images
        found = self._inputs.get((text, images)) if prompt.is_empty else None
        if found is None:
            tokens, allowed = len(PUBLISHED_TOKEN.findall(text)), len(images)
            if tokens > allowed:
                problem = "more image tokens than images" if allowed else "image token without an image"
                raise DataError(key, f"{problem}: {text!r}")
            found = EmbeddingInput(PUBLISHED_TOKEN.sub(IMAGE_TOKEN, text), (), prompt, images)
            self.check_readable(found.text, images, key)
            if prompt.is_empty:
                self._inputs[text, images] = found
        return found

    def check_readable(self, text: str, images: Sequence[str], key: str) -> None:
        """Raise DataError, naming the row, for a text and images, by their keys, that the model cannot read."""
        if self.check is None:
            return
        square_size = self.library.resize_to_square
        sizes = [(square_size, square_size) if square_size else self.library.sizes[image] for image in images]
        try:
            self.check(EmbeddingInput(text, tuple(torch.empty(3, *size, device="meta") for size in sizes)))
        except VirtueError as error:
            raise DataError(key, f"not for this model: {error}") from error

    def _image_key(self, files: SetFiles, path: str | None, key: str) -> str | None:
        assert files.images is not None
        return self.library.add_path(files.images, path, key) if path else None


def check_query(text: str | None, key: str) -> None:
    """Raise DataError for a query about a region without a text."""
    if not text:
        raise DataError(key, "missing query: its text is empty")


def without_gold_repeats(candidates: Sequence[EmbeddingInput], indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices to rank; the same tuple, which many rows share, where the right candidate is there once."""
    dropped = drop_gold_repeats([id(candidate) for candidate in candidates], indices)
    return indices if len(dropped) == len(indices) else dropped


def row_name(about: SetDescription, number: int) -> str:
    """Return a row's name, for messages."""
    return f"{about.name} row {number}"


def box_words(corners: Sequence[float]) -> str:
    """Return a box, xyxy in pixels, as the published queries write it."""
    return f"Referring object bbox: {list(corners)}"


def table_rows(files: SetFiles, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all the set's parquet files. Raises VirtueError where a column is missing."""
    import pyarrow.parquet as pq

    for path in files.tables:
        found = column_names(path)
        if needed is MMEB_COLUMNS and "qry_inst" in found:
            needed = (*INSTRUCTION_COLUMNS, *MMEB_COLUMNS)
        missing = [name for name in needed if name not in found]
        if missing:
            raise VirtueError(
                f"{files.about.name}: {path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}"
            )
        forms = [name for name in found if name.startswith(("tgt_text_", "tgt_kinds_"))]
        columns = list(dict.fromkeys([*needed, *forms, *(["segmentation"] if "segmentation" in found else [])]))
        with readable_parquet(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=columns):
                yield from batch.to_pylist()


@cache
def all_indices(count: int) -> tuple[int, ...]:
    """Return 0, 1, ..., count - 1; one tuple for all rows of that length."""
    return tuple(range(count))
