"""Evaluation rows from shards, in the order of their rows."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from virtue_pl.data.eval_sets.files import SetFiles
from virtue_pl.data.eval_sets.images import ImageLibrary, TarImage
from virtue_pl.data.eval_sets.rows import RowReader, box_words, row_name
from virtue_pl.data.formats.scar_queries import read_rankings
from virtue_pl.data.shards.record_count import RecordCount
from virtue_pl.data.shards.records import Record, Row, read_record, read_region
from virtue_pl.types import DataError, EvaluationRow, VirtueError


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
                rows.append(evaluation_row(files, reader, row, images))
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


def evaluation_row(files: SetFiles, reader: RowReader, row: Row, images: list[str]) -> EvaluationRow:
    """Return a stored row as evaluation ranks it; `images` are the keys of its record's images."""
    number, candidates = int(row["row"]), row["candidates"]
    if not isinstance(candidates, list):
        raise DataError(row.key, f"field 'candidates' is {candidates!r}, expected a list")
    rankings = read_rankings(row, len(candidates))
    if isinstance(row["query"], str):
        candidates = row.texts("candidates")
        if not images:
            raise DataError(row.key, "it has no image: expected one")
        region = read_region(row, reader.library.sizes[images[0]])
        box = box_words(row.published_box)
        return reader.region_row(files.about, number, row["query"], box, images[0], region, candidates, rankings)
    pairs = [[image_by_key(row, stored, images) for stored in inputs] for inputs in ([row["query"]], candidates)]
    if not candidates:
        raise DataError(row_name(files.about, number), "the query has no candidate: expected the right one and others")
    return reader.row(files.about, number, pairs[0][0], pairs[1], rankings)


def image_by_key(row: Row, stored: Any, images: Sequence[str]) -> tuple[str, str | None]:
    """Return a stored text and its image's key. Raises DataError for what is no text with an image's number or null."""
    if not (isinstance(stored, list) and len(stored) == 2 and isinstance(stored[0], str)):
        raise DataError(row.key, f"found {stored!r}, expected a text and the number of its image, or null")
    text, number = stored
    if number is None:
        return text, None
    if type(number) is not int or not 0 <= number < len(images):
        raise DataError(row.key, f"image {number!r} of {text!r} is not there: the record has {len(images)}")
    return text, images[number]
