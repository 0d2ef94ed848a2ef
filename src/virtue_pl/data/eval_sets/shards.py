"""Evaluation rows from shards, in the order of their rows."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from virtue_pl.data.eval_sets.files import SetFiles
from virtue_pl.data.eval_sets.images import ImageLibrary, TarImage
from virtue_pl.data.eval_sets.rows import RowReader, box_words, row_name
from virtue_pl.data.formats.scar_queries import read_rankings
from virtue_pl.data.shards.records import Record, Row, read_record, read_region
from virtue_pl.types import DataError, EvaluationRow


def shard_rows(files: SetFiles, reader: RowReader, limit: int | None = None) -> list[EvaluationRow]:
    """Return every row of a folder of shards, or the first `limit` in it, sorted by row.

    Raises DataError for one that cannot be ranked.
    """
    rows: list[EvaluationRow] = []
    for record, images in records(files, reader.library):
        for row in record.rows:
            if limit is None or len(rows) < limit:
                rows.append(evaluation_row(files, reader, row, images))
    return sorted(rows, key=lambda row: row.row)


def records(files: SetFiles, library: ImageLibrary) -> Iterator[tuple[Record, list[str]]]:
    """Yield records with their images' keys."""
    assert files.shards is not None
    manifest = files.shards.manifest
    for path in files.shards.paths:
        with open_tar(path, files.about.name) as tar:
            for _, grouped in groupby(
                (member for member in tar if member.isfile()), key=lambda member: member.name.partition(".")[0]
            ):
                members = list(grouped)
                contents: dict[str, Any] = {"__key__": members[0].name.partition(".")[0]}
                contents |= {member.name.partition(".")[2]: read_member(tar, member) for member in members}
                record = read_record(contents, manifest.name, manifest.task)
                locations = {
                    contents[member.name.partition(".")[2]]: TarImage(path, member.offset_data, member.size)
                    for member in members
                }
                yield record, [library.add(locations[data], data, record.key) for data in record.data]


def open_tar(path: Path, name: str) -> tarfile.TarFile:
    """Open a tar. Raises DataError where it is damaged."""
    try:
        return tarfile.open(path)
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
    rankings = read_rankings(row, len(candidates))
    if isinstance(row["query"], str):
        region = read_region(row, reader.library.sizes[images[0]])
        return reader.region_row(
            files.about, number, row["query"], box_words(row["box"]), images[0], region, candidates, rankings
        )
    pairs = [
        [(text, None if image is None else images[image]) for text, image in stored]
        for stored in ([row["query"]], candidates)
    ]
    if not candidates:
        raise DataError(row_name(files.about, number), "the query has no candidate, expected the right one and others")
    return reader.row(files.about, number, pairs[0][0], pairs[1], rankings)
