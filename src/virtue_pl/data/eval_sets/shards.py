"""Evaluation rows from shards, in the order of their rows."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from virtue_pl.data.eval_sets.files import SetFiles
from virtue_pl.data.eval_sets.images import ImageLibrary, TarImage
from virtue_pl.data.eval_sets.rows import RowReader, box_words, row_name
from virtue_pl.data.formats.scar_queries import read_rankings
from virtue_pl.data.shards.record_count import RecordCount
from virtue_pl.data.shards.records import Record, Row, read_record, read_region
from virtue_pl.data.shards.stored_prompts import (
    first_number,
    has_region,
    image_numbers,
    read_own_region,
    read_prompt,
)
from virtue_pl.types import DataError, EmbeddingInput, EvaluationRow, SetDescription, VirtueError


def shard_rows(
    files: SetFiles,
    reader: RowReader,
    limit: int | None = None,
    leave_out: Callable[[DataError], object] | None = None,
) -> list[EvaluationRow]:
    """Return every row of a folder of shards, or those of the source's first `limit` rows, sorted by row.

    One that cannot be ranked is told to `leave_out`, as an error that names set and row; or else that is raised. Raises
    VirtueError where a shard is not the one of the manifest, or a row is there twice.
    """
    rows: list[EvaluationRow] = []
    numbers: set[int] = set()
    for record, images in records(files, reader.library, limit):
        for row in record.rows:
            number = int(row["row"])
            if number in numbers:
                raise VirtueError(f"{row.key} is in the shards twice: write them again")
            numbers.add(number)
            if not is_within(row, limit):
                continue
            try:
                rows.append(evaluation_row(files.about, reader, row, images))
            except DataError as error:
                if leave_out is None:
                    raise
                leave_out(error)
    return sorted(rows, key=lambda row: row.row)


def is_within(row: Row, limit: int | None) -> bool:
    """Return whether a row is one of the first `limit` of its source."""
    return limit is None or int(row["row"]) < limit


def records(files: SetFiles, library: ImageLibrary, limit: int | None = None) -> Iterator[tuple[Record, list[str]]]:
    """Yield every record with its images' keys; without these where none of its rows is within the limit."""
    assert files.shards is not None
    folder = files.shards
    for shard in folder.manifest.shards:
        count = RecordCount(folder, shard.name)
        with folder.hold_file(shard.name) as path, open_tar(path, files.about.name) as tar:
            for members in tar_records(tar, count):
                contents = {name: read_member(tar, member) for name, member in members.items()}
                key = next(iter(members.values())).name.partition(".")[0]
                record = read_record({"__key__": key, **contents}, folder.manifest.name, folder.manifest.task)
                count.add(key, len(record.rows))
                if not any(is_within(row, limit) for row in record.rows):
                    yield record, []
                    continue
                locations = {
                    contents[name]: TarImage(path, member.offset_data, member.size) for name, member in members.items()
                }
                yield record, [library.add(locations[data], data, record.key) for data in record.data]
            count.check_complete()


def tar_records(tar: tarfile.TarFile, count: RecordCount) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Yield the members of each record, by what follows the record's key in their names.

    Raises VirtueError where the tar is damaged.
    """
    try:
        files = (member for member in tar if member.isfile())
        for _, members in groupby(files, key=lambda member: member.name.partition(".")[0]):
            yield {member.name.partition(".")[2]: member for member in members}
    except (tarfile.TarError, OSError, EOFError) as error:
        count.fail(f"damaged tar: {error}")


def open_tar(path: Path, name: str) -> tarfile.TarFile:
    """Open a tar. Raises DataError where it is damaged."""
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, OSError) as error:
        raise DataError(name, f"damaged tar: {path} ({error})") from error


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a tar's member."""
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def evaluation_row(about: SetDescription, reader: RowReader, row: Row, images: Sequence[str]) -> EvaluationRow:
    """Return a stored row as evaluation ranks it; `images` are the keys of its record's images.

    A row of training has its target as its only candidate.
    """
    number = int(row["row"])
    if "candidates" not in row.fields:  # a pair, which ranks the targets of all
        row = replace(row, fields={**row.fields, "candidates": [row["target"]], "rankings": {"hit@1": [0]}})
    candidates = row.items("candidates")
    rankings = read_rankings(row, len(candidates))
    if isinstance(row["query"], str):
        candidates = row.texts("candidates")
        if not images:
            raise DataError(row.key, "it has no image: expected one")
        region = read_region(row, reader.library.sizes[images[0]])
        box = box_words(row.published_box)
        return reader.region_row(about, number, row["query"], box, images[0], region, candidates, rankings)
    if not candidates:
        raise DataError(row_name(about, number), "the query has no candidate: expected the right one and others")
    name = row_name(about, number)
    query = stored_input(row, reader, row["query"], images, name)
    ranked = tuple(stored_input(row, reader, stored, images, name) for stored in candidates)
    for index, item in enumerate(ranked):
        if not item.text and not item.image_keys:
            raise DataError(name, f"missing candidate: number {index} has neither text nor image")
    if not has_region(row):
        return reader.ranked_row(about, number, query, ranked, rankings)
    region = read_own_region(row, reader.library.sizes[images[first_number(row, row["query"])]])
    box = box_words([round(corner) for corner in row["box"]]) if row.fields.get("box") is not None else ""
    return reader.ranked_row(about, number, query, ranked, rankings, region, box)


def stored_input(row: Row, reader: RowReader, stored: Any, images: Sequence[str], name: str) -> EmbeddingInput:
    """Return a stored text with its images' numbers, and the prompt on the first of them where it has one.

    name: of the row, for what the model cannot read. Raises DataError for anything else.
    """
    bare, prompt = (stored[:2], stored[2]) if isinstance(stored, list) and len(stored) == 3 else (stored, None)
    numbers = image_numbers(bare)
    if numbers is None:
        raise DataError(row.key, f"found {stored!r}, expected a text and the number of its image, or null")
    for number in numbers:
        if not 0 <= number < len(images):
            raise DataError(row.key, f"image {number!r} of {bare[0]!r} is not there: the record has {len(images)}")
    keys = tuple(images[number] for number in numbers)
    if prompt is None:
        return reader.input(bare[0], keys, name)
    size = reader.library.sizes[images[first_number(row, bare)]]
    return reader.input(bare[0], keys, name, read_prompt(row, prompt, size))
