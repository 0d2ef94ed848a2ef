"""Files of encoded rows, as `virtue-pl encode` writes them: Parquet, one file or many, or a Lance table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.search.rows import EncodingFacts
from virtue_pl.types import VirtueError
from virtue_pl.types.paths import suggest_path

PARQUET, LANCE = ".parquet", ".lance"
TABLE = "rows"
"""Name of the table in a LanceDB folder of encoded rows, and in an index."""
SOURCE_LINE = re.compile(r",? /\S+\.rs:\d+(:\d+)?")
BATCH_ROWS = 4096
"""Rows that are read at once."""


@dataclass(frozen=True)
class RowFiles:
    """Encoded rows on a disk or in object storage, which are read a batch at a time.

    source: the file, folder or table. schema: of all files, with the facts of the encoding. files: Parquet files in
    order; empty for a Lance table. rows: their number.

    Example:
        >>> rows = RowFiles.open("runs/encoded")  # doctest: +SKIP
        >>> rows.facts.dim, rows.rows  # doctest: +SKIP
        (384, 2000)
    """

    source: str
    schema: pa.Schema
    files: tuple[str, ...]
    rows: int
    storage_options: Mapping[str, str]

    @classmethod
    def open(cls, source: str, storage_options: Mapping[str, str] | None = None) -> RowFiles:
        """Return the rows of a Parquet file, of a folder of them, or of a Lance table or its folder.

        Headers alone are read.

        storage_options: of a Lance table in object storage; Parquet files there are reached as fsspec reaches them.

        Raises VirtueError where there are none, for files of several encodings or columns, and for none that
        `virtue-pl encode` wrote.
        """
        options = dict(storage_options or {})
        inside = Path(source) / f"{TABLE}{LANCE}"
        source = str(inside) if inside.is_dir() else source
        if source.rstrip("/").endswith(LANCE):
            table = open_lance(source, options)
            files: tuple[str, ...] = ()
            schema, count = table.schema, table.count_rows()
        else:
            files = find_parquet(source)
            schema, count = read_headers(files)
        found = cls(source, schema, files, count, options)
        found.check()
        return found

    @property
    def facts(self) -> EncodingFacts:
        """The facts of the encoding."""
        return EncodingFacts.from_schema(self.schema, self.source)

    def check(self) -> None:
        """Raise VirtueError for rows without vectors of the length that their facts name, and for no rows at all."""
        dim, names = self.facts.dim, self.schema.names
        found = self.schema.field("vector").type if "vector" in names else None
        if found is None or not pa.types.is_fixed_size_list(found) or found.list_size != dim:
            raise VirtueError(f"{self.source}: its column 'vector' is {found}, expected {dim} numbers a row")
        if "id" not in names:
            raise VirtueError(f"{self.source}: there is no column 'id', expected rows that `virtue-pl encode` wrote")
        if not self.rows:
            raise VirtueError(f"{self.source}: there are no rows to index")

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order. Raises VirtueError, which names the row, for a vector that is no direction."""
        if self.files:
            found = (batch for file in self.files for batch in read_parquet(file, batch_rows))
        else:
            found = iter(open_lance(self.source, dict(self.storage_options)).search().to_batches(batch_rows))
        for batch in found:
            ordered = pa.RecordBatch.from_arrays([batch.column(name) for name in self.schema.names], schema=self.schema)
            check_vectors(ordered, self.source)
            yield ordered


def to_matrix(column: Any) -> np.ndarray:
    """Return a column of vectors as float32 [rows, dim]."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), -1).astype(np.float32, copy=False)


def check_vectors(batch: pa.RecordBatch, source: str) -> None:
    """Raise VirtueError for a row whose vector is missing, has no length, or holds what is no number."""
    column = batch.column("vector")
    lengths = np.zeros(len(batch)) if column.null_count else np.linalg.norm(to_matrix(column), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        name = batch.column("id")[int(wrong[0])].as_py()
        raise VirtueError(f"{source}: the vector of row {name!r} is missing, zero or not finite: encode it again")


def find_parquet(source: str) -> tuple[str, ...]:
    """Return the Parquet files of a path or URI in order. Raises VirtueError where there are none."""
    filesystem, path = fsspec.core.url_to_fs(source)
    if filesystem.isfile(path):
        found = [path]
    elif filesystem.isdir(path):
        inside = (PurePosixPath(each).relative_to(path) for each in filesystem.find(path) if each.endswith(PARQUET))
        found = [f"{path.rstrip('/')}/{each}" for each in sorted(inside) if not has_hidden_part(each)]
    else:
        raise VirtueError(f"there are no encoded rows {source}{suggest_path(source) if '://' not in source else ''}")
    if not found:
        raise VirtueError(
            f"{source}: there is no {PARQUET} file in it, expected what `virtue-pl encode` writes, or a table {LANCE}"
        )
    return tuple(filesystem.unstrip_protocol(each) for each in found)


def has_hidden_part(path: PurePosixPath) -> bool:
    """Return whether a file is, or lies in, something temporary: its name begins with a point or an underline."""
    return any(part.startswith((".", "_")) for part in path.parts)


def read_headers(files: tuple[str, ...]) -> tuple[pa.Schema, int]:
    """Return the schema of Parquet files and their rows. Raises VirtueError where they differ, naming the file."""
    schema, count = None, 0
    for file in files:
        with opened_parquet(file) as found:
            count += found.metadata.num_rows
            facts = EncodingFacts.from_schema(found.schema_arrow, file)
            if schema is None:
                schema = found.schema_arrow.with_metadata(facts.to_metadata())
            first = EncodingFacts.from_schema(schema, files[0])
            different = next((key for key in vars(facts) if getattr(facts, key) != getattr(first, key)), None)
            if different is not None:
                raise VirtueError(
                    f"{file} is of another encoding than {files[0]}: its {different} is {getattr(facts, different)!r},"
                    f" not {getattr(first, different)!r}; index each by itself"
                )
            if sorted(map(str, found.schema_arrow)) != sorted(map(str, schema)):
                raise VirtueError(f"{file} has other columns than {files[0]}: {', '.join(found.schema_arrow.names)}")
    assert schema is not None
    return schema, count


@contextmanager
def opened_parquet(file: str) -> Iterator[pq.ParquetFile]:
    """Provide a Parquet file within the block. Raises VirtueError where it, or what is read of it, is damaged."""
    with fsspec.open(file, "rb").open() as stream:
        try:
            yield pq.ParquetFile(stream)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise VirtueError(f"{file} is no Parquet file that can be read: {first_line(error)}") from error


def read_parquet(file: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet file."""
    with opened_parquet(file) as found:
        yield from found.iter_batches(batch_rows)


def open_lance(source: str, storage_options: dict[str, str]) -> Any:
    """Return a Lance table by its path or URI. Raises VirtueError where there is none."""
    parent, _, name = source.rstrip("/").rpartition("/")
    return open_table(parent or ".", name.removesuffix(LANCE), storage_options)


def open_table(folder: str, name: str, storage_options: dict[str, str]) -> Any:
    """Return a table of a LanceDB folder. Raises VirtueError where there is none, or it cannot be read."""
    try:
        return import_lancedb().connect(folder, storage_options=storage_options or None).open_table(name)
    except (ValueError, OSError, RuntimeError) as error:
        raise VirtueError(f"{folder}: there is no table {name!r} that can be read: {first_line(error)}") from error


def import_lancedb() -> Any:
    """Return the package lancedb. Raises VirtueError where it is not installed."""
    try:
        import lancedb
    except ImportError as error:
        raise VirtueError("indexing and searching need lancedb: pip install 'virtue_pl[search]'") from error
    return lancedb


@contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Turn LanceDB's errors within the block into one line; those of this package, and of reading rows, stay."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VirtueError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise VirtueError(f"{uri}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return an error's text as one short line, without the line of LanceDB's own source that it arose in."""
    text = SOURCE_LINE.sub("", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:297]}..."
