"""Rows of a parquet file grouped by a key, the groups in seeded random order, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from virtue_pl.types import VirtueError

Group = list[tuple[int, dict[str, Any]]]
"""Rows that share a record, each with its number in the file."""


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Raise VirtueError within the block where a parquet file is none, or damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
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

    Groups are ordered by a seeded hash of that key. Only the hashes (8 bytes a row) and about `rows_per_pass` rows are
    in memory at a time: the file is read once for each such part of the order. Raises VirtueError where the file is
    damaged, or gives other rows than it says.
    """
    hashes, yielded = _hashes(path, by, seed, key), 0
    limits = [*np.unique(np.sort(hashes)[::rows_per_pass]).tolist(), 2**64]
    for low, end in pairwise(limits):
        found = _rows_between(path, columns, hashes, low, end)
        keyed = sorted(
            ((digest, key(*(row[name] for name in by)), number, row) for digest, number, row in found),
            key=lambda item: item[:3],
        )
        for _, group in groupby(keyed, key=lambda item: item[:2]):
            rows = [(number, row) for _, _, number, row in group]
            yielded += len(rows)
            yield rows
    if not yielded == len(hashes) == num_rows(path):
        raise VirtueError(f"{path} gave {yielded} rows, expected {num_rows(path)}: it changed while it was read")


def _hashes(path: Path, by: Sequence[str], seed: int, key: Callable[..., str]) -> np.ndarray:
    import pyarrow.parquet as pq

    salt = str(seed).encode()[:64]
    parts = [np.zeros(0, dtype=np.uint64)]
    with readable_parquet(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(by)):
            values = zip(*(batch.column(name).to_pylist() for name in by), strict=True)
            digests = (hashlib.blake2b(key(*row).encode(), digest_size=8, key=salt).digest() for row in values)
            parts.append(np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64))
    return np.concatenate(parts)


def _rows_between(
    path: Path, columns: Sequence[str], hashes: np.ndarray, low: int, end: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    with readable_parquet(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=8192, columns=list(columns)):
            part = hashes[start : start + len(batch)]
            chosen = np.flatnonzero((part >= np.uint64(low)) & (part <= np.uint64(end - 1)))
            for index, row in zip(chosen.tolist(), batch.take(pa.array(chosen)).to_pylist(), strict=True):
                yield int(part[index]), start + index, row
            start += len(batch)
