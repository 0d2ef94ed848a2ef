"""Rows of evaluation sets as queries and candidates to rank; every candidate list stays as it is in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import column_names
from virtue_pl.data.conversion.mmeb import INSTRUCTION_COLUMNS
from virtue_pl.data.conversion.mmeb import RANKING_COLUMNS as MMEB_COLUMNS
from virtue_pl.data.conversion.scar import RANKING_COLUMNS as SCAR_COLUMNS
from virtue_pl.data.eval_sets.files import SetFiles, mmeb_set_of
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.formats.mmeb import PUBLISHED_TOKEN, read_items
from virtue_pl.data.formats.mmeb_instructions import to_one_string
from virtue_pl.data.formats.scar import form_columns, run_lengths, xyxy
from virtue_pl.data.formats.scar_queries import NO_PROMPT, instruction
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.records import Row, read_region
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, EvaluationRow, Region, SetDescription, VirtueError

_BOX_TEXT = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")
ROWS_PER_READ = 64


class RowReader:
    """Reads rows of evaluation files; equal inputs of different rows are one object.

    Args:
        library: the images, by content.

    Example:
        >>> reader = RowReader(ImageLibrary())
        >>> reader.input("a cat", None) is reader.input("a cat", None)
        True
    """

    def __init__(self, library: ImageLibrary) -> None:
        self.library = library
        self._inputs: dict[tuple[str, str | None], EmbeddingInput] = {}
        self._paths: dict[ImageFiles, dict[str, str]] = {}

    def read(self, files: SetFiles, limit: int | None = None) -> Iterator[EvaluationRow]:
        """Yield the rows of official parquet files, in order.

        Raises DataError, which names set and row, for one that cannot be ranked.
        """
        scar = files.about.benchmark.startswith("scar")
        for number, row in enumerate(table_rows(files, SCAR_COLUMNS if scar else MMEB_COLUMNS)):
            if limit is not None and number >= limit:
                return
            yield self.scar_row(files, number, row) if scar else self.mmeb_row(files, number, row)

    def scar_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        """Return a row of SCaR's columns."""
        key = row_name(files.about, number)
        assert files.images is not None
        image = self.library.add_path(files.images, row["qry_image_path"], key)
        box, size = row["bbox"], self.library.sizes[image]
        corners = xyxy(box, key, size)
        mask = run_lengths(row.get("segmentation"), key, size)
        region = read_region(Row(key, files.about.name, {"box": corners, "mask": mask}), size)
        box_text = box_words([box[0], box[1], box[0] + box[2], box[1] + box[3]])
        captions, rankings = ranked_captions(row, key)
        return self.region_row(files.about, number, row["qry_text"], box_text, image, region, captions, rankings)

    def region_row(
        self,
        about: SetDescription,
        number: int,
        query: str | None,
        box_text: str,
        image: str,
        region: Region,
        captions: Sequence[str],
        rankings: Mapping[str, tuple[int, ...]],
    ) -> EvaluationRow:
        """Return a row about a region; `box_text` is the box as published queries write it, `image` the image's key."""
        if not query:
            raise DataError(row_name(about, number), "missing query: its text is empty")
        text = PUBLISHED_TOKEN.sub("", _BOX_TEXT.sub("", query))
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
            region,
            candidates,
            rankings,
        )

    def mmeb_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        """Return a row of MMEB's columns, in either form."""
        key = row_name(files.about, number)
        if "qry_inst" in row:
            row = to_one_string(row, mmeb_set_of(files.about), key)
        found = read_items(row["tgt_text"], row["tgt_img_path"], "candidates", key)
        key_by_path = self._paths.setdefault(files.images, {}) if files.images is not None else {}
        images = [key_by_path.get(path) or self._image_key(files, path, key) for _, path in found]
        key_by_path |= {path: image for (_, path), image in zip(found, images, strict=True) if image is not None}
        candidates = [(text, image) for (text, _), image in zip(found, images, strict=True)]
        return self.row(
            files.about, number, (row["qry_text"] or "", self._image_key(files, row["qry_img_path"], key)), candidates
        )

    def row(
        self,
        about: SetDescription,
        number: int,
        query: tuple[str, str | None],
        candidates: Sequence[tuple[str, str | None]],
        rankings: Mapping[str, tuple[int, ...]] | None = None,
    ) -> EvaluationRow:
        """Return a row without a region: texts as MMEB writes them, images by their keys."""
        key = row_name(about, number)
        check_candidates(candidates, key)
        text, image = query
        if not text and image is None:
            raise DataError(key, "missing query: both its text and its image are empty")
        query_input = self.input(text, image, key)
        ranked = tuple(self.input(text, images, key) for text, images in candidates)
        size = None if image is None else self.library.sizes[image]
        rankings = {
            name: drop_gold_repeats(ranked, indices)
            for name, indices in (rankings or {"hit@1": all_indices(len(ranked))}).items()
        }
        return EvaluationRow(
            about.name, number, query_input.text, query_input.text, "", image, size, None, ranked, rankings
        )

    def input(self, text: str, image: str | None, key: str = "") -> EmbeddingInput:
        """Return the input of a text and an image's key, one object for equal ones.

        Raises DataError for more image tokens than images.
        """
        found = self._inputs.get((text, image))
        if found is None:
            tokens, allowed = len(PUBLISHED_TOKEN.findall(text)), 0 if image is None else 1
            if tokens > allowed:
                raise DataError(key, f"{tokens} image tokens in {text!r}, expected {allowed}, as many as it has images")
            images = () if image is None else (image,)
            found = self._inputs[text, image] = EmbeddingInput(
                PUBLISHED_TOKEN.sub(IMAGE_TOKEN, text), (), NO_PROMPT, images
            )
        return found

    def _image_key(self, files: SetFiles, path: str | None, key: str) -> str | None:
        assert files.images is not None
        return self.library.add_path(files.images, path, key) if path else None


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
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=columns):
                yield from batch.to_pylist()


def ranked_captions(row: Mapping[str, Any], key: str) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """Return the captions of a row, and the indices that each form ranks, the right one first.

    The captions of `tgt_text` come first, as they are, then those that only other forms have. A form is ranked as
    "hit@1_FORM"; with `tgt_kinds_FORM`, each kind of distractor under its own name, too.
    """
    captions = list(row["tgt_text"] or [])
    check_candidates([(caption, None) for caption in captions], key)
    gold, indices = captions[0], {caption: index for index, caption in reversed(list(enumerate(captions)))}
    rankings = {"hit@1": (0, *(index for index, caption in enumerate(captions) if caption != gold))}
    for column in form_columns(row)[1:]:
        form, found = column.removeprefix("tgt_text"), list(row[column] or [])
        if not found or found[0] != gold or not all(found):
            raise DataError(key, f"another gold caption: {column} starts with {found[:1]}, tgt_text with {gold!r}")
        captions += [caption for caption in dict.fromkeys(found) if caption not in indices]
        indices |= {caption: index for index, caption in reversed(list(enumerate(captions)))}
        kinds = row.get(f"tgt_kinds{form}") or []
        rankings[f"hit@1{form}"] = (0, *(indices[caption] for caption in found if caption != gold))
        for kind in dict.fromkeys(kinds[1:]):
            chosen = [
                caption for caption, of_kind in zip(found, kinds, strict=True) if of_kind == kind and caption != gold
            ]
            rankings[kind] = (0, *(indices[caption] for caption in chosen))
    return captions, rankings


def check_candidates(candidates: Sequence[tuple[str, str | None]], key: str) -> None:
    """Raise DataError for a query without candidates, and for an empty candidate."""
    if not candidates:
        raise DataError(key, "the query has no candidate, expected the right one and others")
    for index, (text, image) in enumerate(candidates):
        if not text and image is None:
            raise DataError(key, f"missing candidate: number {index} has neither text nor image")


def drop_gold_repeats(candidates: Sequence[EmbeddingInput], indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the indices to rank, the right candidate's first, without those of equal candidates."""
    gold = candidates[indices[0]]
    if sum(candidates[index] is gold for index in indices) == 1:
        return indices
    return (indices[0], *(index for index in indices[1:] if candidates[index] is not gold))


@cache
def all_indices(count: int) -> tuple[int, ...]:
    """Return 0, 1, ..., count - 1; one tuple for all rows of that length."""
    return tuple(range(count))
