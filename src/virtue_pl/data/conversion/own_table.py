"""One's own rows as a parquet table of one spelling, in which those that cannot be read say why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.conversion.own_sources import OwnSource
from virtue_pl.data.conversion.text_rows import SourceRow
from virtue_pl.data.formats.own_rows import OwnRow, RowOptions, read_row
from virtue_pl.types import DataError, VirtueError, replace_whole

ROWS_PER_WRITE = 2_000
TABLE = pa.schema(
    [
        ("where", pa.string()),
        ("query_image", pa.string()),
        ("target_images", pa.list_(pa.string())),
        ("candidate_images", pa.list_(pa.string())),
        ("query", pa.large_string()),
        ("files", pa.list_(pa.string())),
        ("content", pa.large_string()),
        ("problem", pa.large_string()),
    ]
)
"""Columns of the table: a row's place in its source, the image or text that decides its record, all files that it
needs, and the row as JSON, or its problem.
"""


class EmbeddedImages:
    """Images that were inside of rows, as files in a folder under the paths that the rows have for them.

    An image without a path is called by its content, as is one whose path another image has.

    Example:
        >>> images = EmbeddedImages(Path("embedded"))
        >>> images.store(jpeg, "kitchen.jpg"), images.store(other_jpeg, "kitchen.jpg")  # doctest: +SKIP
        ('kitchen.jpg', '5e0c3f1a9b2d4c67-kitchen.jpg')
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def store(self, data: bytes, path: str) -> str:
        """Write an image, once, and return its path. Raises ValueError for no bytes."""
        if not data:
            raise ValueError("an image of 0 bytes")
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        pure = PurePosixPath(path.replace("\\", "/"))
        inside = pure.name and not pure.is_absolute() and ".." not in pure.parts
        name = str(pure) if inside else f"{digest}-{pure.name}" if pure.name else digest
        if self.digests.get(name.removeprefix("images/"), digest) != digest:
            name = str(pure.with_name(f"{digest}-{pure.name}"))
        file = name.removeprefix("images/")
        if file not in self.digests:
            self._write(self.folder / file, data)
            self.digests[file] = digest
        return name

    def _write(self, file: Path, data: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.utime(file, (0, 0))  # the same state whenever it is written: its content is the source's


def write_table(source: OwnSource, table: Path, options: RowOptions, embedded: EmbeddedImages) -> str:
    """Write all rows of a source to `table`; return "rankings" where one has candidates, else "pairs".

    Raises VirtueError for a source that cannot be read, has a column that there is not, or no row.
    """
    source.check_columns(options.ignored_columns)
    kind, count = "pairs", 0
    with replace_whole(table) as temporary, pq.ParquetWriter(temporary, TABLE) as writer:
        rows = (_to_stored(row, source.name, options, embedded) for row in source.rows())
        while some := list(islice(rows, ROWS_PER_WRITE)):
            count += len(some)
            kind = "rankings" if any(found["candidates"] for found in some) else kind
            columns = {name: [found[name] for found in some] for name in TABLE.names}
            writer.write_table(pa.table(columns, schema=TABLE))
    if not count:
        raise VirtueError(f"{source.path} has no row: expected one pair or ranking a row, --schema prints its columns")
    return kind


def _to_stored(row: SourceRow, name: str, options: RowOptions, embedded: EmbeddedImages) -> dict[str, Any]:
    """Return a row of the table; whatever a row may cause is its problem."""
    problem = row.problem
    if not problem:
        try:
            found = read_row(row.values, f"{name}/{row.number}", options, embedded.store)
            found = replace(found, query=replace(found.query, image_size=row.image_size))
            return {**_indexed(found), "where": row.where, "content": found.to_json(), "problem": None}
        except DataError as error:
            problem = error.problem
        except Exception as error:
            problem = f"unreadable row: {error!r}"
    where = printable(row.where)
    return {**_indexed(OwnRow()), "query": where, "where": where, "content": None, "problem": printable(problem)}


def printable(text: str) -> str:
    """Return a text as one line that can be written as UTF-8."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _indexed(row: OwnRow) -> dict[str, Any]:
    return {
        "query_image": row.query.images[0] if row.query.images else "",
        "target_images": list(row.target.images) if row.target else [],
        "candidate_images": list(_images(row.candidates or ())),
        "query": row.query.text,
        "files": list(dict.fromkeys(path for item in row.items for path in item.files)),
        "candidates": row.candidates is not None,
    }


def _images(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        yield from item.images
