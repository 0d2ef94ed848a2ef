"""Rows of evaluation sets as they are asked and ranked; every candidate list stays as it is in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import column_names
from virtue_pl.data.conversion.mmeb import INSTRUCTION_COLUMNS
from virtue_pl.data.conversion.mmeb import RANKING_COLUMNS as MMEB_COLUMNS
from virtue_pl.data.conversion.scar import RANKING_COLUMNS as SCAR_COLUMNS
from virtue_pl.data.eval_sets.files import SetFiles, dataset_of
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.formats.mmeb import PUBLISHED_TOKEN, items
from virtue_pl.data.formats.mmeb_instructions import one_string
from virtue_pl.data.formats.scar import form_columns, run_lengths, xyxy
from virtue_pl.data.formats.scar_queries import NO_PROMPT, instruction
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.records import Row, read_region
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, EvaluationRow, Region, SetDescription, VirtueError

_BOX_WORDS = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")
ROWS_AT_A_TIME = 64


class RowReader:
    """Makes rows of what files hold, sharing equal inputs.

    Args:
        library: the images, by content.
    """

    def __init__(self, library: ImageLibrary) -> None:
        self.library = library
        self._inputs: dict[tuple[str, str | None], EmbeddingInput] = {}
        self._paths: dict[ImageFiles, dict[str, str]] = {}

    def read(self, files: SetFiles, limit: int | None = None) -> Iterator[EvaluationRow]:
        """The rows of official parquet files, in order. Raises DataError naming set and row for one that cannot be
        ranked.
        """
        scar = files.about.benchmark.startswith("scar")
        for number, row in enumerate(table_rows(files, SCAR_COLUMNS if scar else MMEB_COLUMNS)):
            if limit is not None and number >= limit:
                return
            yield self.scar_row(files, number, row) if scar else self.mmeb_row(files, number, row)

    def scar_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        key = row_name(files.about, number)
        assert files.images is not None
        image = self.library.named(files.images, row["qry_image_path"], key)
        box, size = row["bbox"], self.library.sizes[image]
        corners = xyxy(box, key, size)
        mask = run_lengths(row.get("segmentation"), key, size)
        region = read_region(Row(key, files.about.name, {"box": corners, "mask": mask}), size)
        words = box_words([box[0], box[1], box[0] + box[2], box[1] + box[3]])
        captions, rankings = ranked_captions(row, key)
        return self.region_row(files.about, number, row["qry_text"], words, image, region, captions, rankings)

    def region_row(
        self,
        about: SetDescription,
        number: int,
        query: str | None,
        words: str,
        image: str,
        region: Region,
        captions: Sequence[str],
        rankings: Mapping[str, tuple[int, ...]],
    ) -> EvaluationRow:
        if not query:
            raise DataError(row_name(about, number), "missing query: its text is empty")
        said = PUBLISHED_TOKEN.sub("", _BOX_WORDS.sub("", query))
        published = IMAGE_TOKEN + f"  {said}".replace(" \n", "\n")
        candidates = tuple(self.input(caption, None) for caption in captions)
        return EvaluationRow(
            about.name,
            number,
            instruction(query),
            published,
            words,
            image,
            self.library.sizes[image],
            region,
            candidates,
            rankings,
        )

    def mmeb_row(self, files: SetFiles, number: int, row: Mapping[str, Any]) -> EvaluationRow:
        key = row_name(files.about, number)
        if "qry_inst" in row:
            row = one_string(row, dataset_of(files.about), key)
        found = items(row["tgt_text"], row["tgt_img_path"], "candidates", key)
        known = self._paths.setdefault(files.images, {}) if files.images is not None else {}
        images = [known.get(path) or self._named(files, path, key) for _, path in found]
        known |= {path: image for (_, path), image in zip(found, images, strict=True) if image is not None}
        candidates = [(text, image) for (text, _), image in zip(found, images, strict=True)]
        return self.row(
            files.about, number, (row["qry_text"] or "", self._named(files, row["qry_img_path"], key)), candidates
        )

    def row(
        self,
        about: SetDescription,
        number: int,
        query: tuple[str, str | None],
        candidates: Sequence[tuple[str, str | None]],
        rankings: Mapping[str, tuple[int, ...]] | None = None,
    ) -> EvaluationRow:
        """A row without a region; texts as MMEB writes them, images by their keys."""
        key = row_name(about, number)
        check_candidates(candidates, key)
        text, image = query
        if not text and image is None:
            raise DataError(key, "missing query: both its text and its image are empty")
        asked = self.input(text, image, key)
        ranked = tuple(self.input(said, shown, key) for said, shown in candidates)
        size = None if image is None else self.library.sizes[image]
        rankings = {
            name: others_than_gold(ranked, places)
            for name, places in (rankings or {"hit@1": all_places(len(ranked))}).items()
        }
        return EvaluationRow(about.name, number, asked.text, asked.text, "", image, size, None, ranked, rankings)

    def input(self, text: str, image: str | None, key: str = "") -> EmbeddingInput:
        """The input of a text and an image's key, one object for equal ones. Raises DataError for an image token too
        many.
        """
        found = self._inputs.get((text, image))
        if found is None:
            tokens, allowed = len(PUBLISHED_TOKEN.findall(text)), 0 if image is None else 1
            if tokens > allowed:
                raise DataError(key, f"{tokens} image tokens in {text!r}, expected {allowed}, as many as it has images")
            shown = () if image is None else (image,)
            found = self._inputs[text, image] = EmbeddingInput(
                PUBLISHED_TOKEN.sub(IMAGE_TOKEN, text), (), NO_PROMPT, shown
            )
        return found

    def _named(self, files: SetFiles, path: str | None, key: str) -> str | None:
        assert files.images is not None
        return self.library.named(files.images, path, key) if path else None


def row_name(about: SetDescription, number: int) -> str:
    """For messages."""
    return f"{about.name} row {number}"


def box_words(corners: Sequence[float]) -> str:
    """A box, xyxy in pixels, as the published queries say it, as Python prints it."""
    return f"Referring object bbox: {list(corners)}"


def table_rows(files: SetFiles, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of all the set's parquet files. Raises VirtueError where a column is missing."""
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
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns):
                yield from batch.to_pylist()


def ranked_captions(row: Mapping[str, Any], key: str) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The captions of `tgt_text` as they are, then those that only other forms have; and which of them each form ranks,
    the right one first.

    A form is ranked as "hit@1_FORM"; with `tgt_kinds_FORM`, each kind of distractor under its own name, too.
    """
    captions = list(row["tgt_text"] or [])
    check_candidates([(caption, None) for caption in captions], key)
    gold, places = captions[0], {caption: place for place, caption in reversed(list(enumerate(captions)))}
    rankings = {"hit@1": (0, *(place for place, caption in enumerate(captions) if caption != gold))}
    for column in form_columns(row)[1:]:
        form, found = column.removeprefix("tgt_text"), list(row[column] or [])
        if not found or found[0] != gold or not all(found):
            raise DataError(key, f"another gold caption: {column} starts with {found[:1]}, tgt_text with {gold!r}")
        captions += [caption for caption in dict.fromkeys(found) if caption not in places]
        places |= {caption: place for place, caption in reversed(list(enumerate(captions)))}
        kinds = row.get(f"tgt_kinds{form}") or []
        rankings[f"hit@1{form}"] = (0, *(places[caption] for caption in found if caption != gold))
        for kind in dict.fromkeys(kinds[1:]):
            chosen = [
                caption for caption, of_kind in zip(found, kinds, strict=True) if of_kind == kind and caption != gold
            ]
            rankings[kind] = (0, *(places[caption] for caption in chosen))
    return captions, rankings


def check_candidates(candidates: Sequence[tuple[str, str | None]], key: str) -> None:
    """Raises DataError for a query that has nothing to choose from, and for an empty candidate."""
    if not candidates:
        raise DataError(key, "the query has no candidate, expected the right one and others")
    for place, (text, image) in enumerate(candidates):
        if not text and image is None:
            raise DataError(key, f"missing candidate: number {place} has neither text nor image")


def others_than_gold(candidates: Sequence[EmbeddingInput], places: tuple[int, ...]) -> tuple[int, ...]:
    """The places to rank, the right candidate's first, without those that hold the same thing once more."""
    gold = candidates[places[0]]
    if sum(candidates[place] is gold for place in places) == 1:
        return places
    return (places[0], *(place for place in places[1:] if candidates[place] is not gold))


@cache
def all_places(count: int) -> tuple[int, ...]:
    """One tuple for all rows of that length."""
    return tuple(range(count))
