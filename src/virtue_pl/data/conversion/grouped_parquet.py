"""Rows of a parquet file grouped by a key, the groups in seeded random order, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from virtue_pl.types import VirtueError

Group = list[tuple[int, dict[str, Any]]]
"""Rows that share a record, each with its number in the file."""

ROWS_PER_READ = 8192
DIGEST, KEY, NUMBER = "virtue_pl digest", "virtue_pl key", "virtue_pl number"
"""Names of the columns beside a file's own: the seeded hash of the key that rows share, the key, the row's number."""


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Raise VirtueError within the block where a parquet file is none, or damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VirtueError(f"{path} is no parquet file, or a damaged one: {error}: fetch it again") from error


def column_names(path: Path) -> list[str]:
    """Return the names of a parquet file's columns. Raises VirtueError where the file is no parquet."""
    import pyarrow.parquet as pq

    with readable_parquet(path):
        return list(pq.read_schema(path).names)


def num_rows(path: Path) -> int:
    """Return the number of rows of a parquet file. Raises VirtueError where the file is no parquet."""
    import pyarrow.parquet as pq

    with readable_parquet(path):
        return int(pq.read_metadata(path).num_rows)


def grouped_rows(
    path: Path,
    columns: Sequence[str],
    by: Sequence[str],
    seed: int,
    rows_per_pass: int = 50_000,
    key: Callable[..., str] = str,
) -> Iterator[Group]:
    """Yield lists of (row number, row) that share the `key` of their values in the columns `by`, a part of `columns`.

    Groups are ordered by a seeded hash of that key. The file is read once. About `rows_per_pass` rows are in memory at
    a time: those of a longer file are first sorted into parts of that order, which wait compressed in a temporary
    folder (the environment variable TMPDIR says where). Raises VirtueError where the file is damaged, or gives other
    rows than it says.
    """
    parts, hashed = -(-num_rows(path) // rows_per_pass), _hashed_batches(path, columns, by, seed, key)
    if parts <= 1:
        yield from _groups(hashed)
        return
    with TemporaryDirectory(prefix="virtue-pl-") as folder:
        files = [Path(folder) / f"{part}.arrows" for part in range(parts)]
        _write_parts(files, hashed, rows_per_pass)
        for file in files:
            yield from _groups(_read_part(file))
            file.unlink(missing_ok=True)


def _groups(batches: Iterable[Any]) -> Iterator[Group]:
    """Yield the groups of some rows, all of which are in memory, in the order of their hashes."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    keyed = sorted(((row.pop(DIGEST), row.pop(KEY), row.pop(NUMBER), row) for row in rows), key=lambda item: item[:3])
    del rows
    for _, group in groupby(keyed, key=lambda item: item[:2]):
        yield [(number, row) for _, _, number, row in group]


def _hashed_batches(
    path: Path, columns: Sequence[str], by: Sequence[str], seed: int, key: Callable[..., str]
) -> Iterator[Any]:
    """Yield the rows of a file in order as pyarrow's batches, with hash, key and number in three further columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    salt, start = str(seed).encode()[:64], 0
    with readable_parquet(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=list(columns)):
            batch.validate(full=True)  # a damaged file may hold texts that are none, and lists that go on beyond it
            keys = [key(*row) for row in zip(*(batch.column(name).to_pylist() for name in by), strict=True)]
            digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in keys)
            further = {
                DIGEST: pa.array(np.frombuffer(digests, dtype="<u8").astype(np.uint64)),
                KEY: pa.array(keys, pa.large_string()),
                NUMBER: pa.array(np.arange(start, start + len(batch))),
            }
            schema = pa.schema([*batch.schema, *(pa.field(name, column.type) for name, column in further.items())])
            yield pa.RecordBatch.from_arrays([*batch.columns, *further.values()], schema=schema)
            start += len(batch)
    if start != num_rows(path):
        raise VirtueError(f"{path} gave {start} rows, expected {num_rows(path)}: it changed while it was read")


def _write_parts(files: Sequence[Path], batches: Iterable[Any], rows_per_write: int) -> None:
    """Append rows to the files, each of which gets an equal share of all hashes, in their order.

    A file holds one of Arrow's streams after the other, so that none has to stay open.
    """
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression="zstd" if pa.Codec.is_available("zstd") else None)
    for batch in _joined(batches, rows_per_write):
        shares = batch.column(DIGEST).to_numpy().astype(np.float64) / 2.0**64 * len(files)
        part_of_row = np.minimum(shares.astype(np.int64), len(files) - 1)
        for part in np.unique(part_of_row).tolist():
            with files[part].open("ab") as file, pa.ipc.new_stream(file, batch.schema, options=options) as stream:
                stream.write(batch.take(pa.array(np.flatnonzero(part_of_row == part))))


def _joined(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Yield tables of at least so many rows, but for the last."""
    import pyarrow as pa

    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= rows:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _read_part(path: Path) -> Iterator[Any]:
    """Yield the batches of a file of `_write_parts`; none where no row is in it."""
    import pyarrow as pa

    if not path.is_file():
        return
    with path.open("rb") as file:
        while file.tell() < path.stat().st_size:
            with pa.ipc.open_stream(file) as stream:
                yield from stream
