"""Digests of a folder's targets, row by row, by which equal ones are found without reading any shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from virtue_pl.data.shards.manifest import Shard, ShardFolder
from virtue_pl.data.shards.record_index import RecordIndex, read_members
from virtue_pl.data.shards.records import read_record
from virtue_pl.types import DataError, VirtueError, replace_whole

TARGETS = "targets.safetensors"
"""File beside shards of pairs: `targets`, one digest a row in the order of the shards, with a checksum of
them and those of the shards.
"""
Digests = NDArray[np.int64]


def target_digest(row: Mapping[str, Any], images: Sequence[bytes]) -> int:
    """Return 63 bits that are equal for equal targets: the row's `target`, with its images' bytes for their numbers.

    A row without a target has a digest of its own number, which no other row has.
    """
    target = row.get("target")
    found = hashlib.blake2b(dump_target(target), digest_size=8)
    if target is None:
        found.update(f"row {row.get('row')}".encode())
    numbers = target[1] if isinstance(target, list) and len(target) > 1 else None
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if isinstance(number, int) and 0 <= number < len(images):
            found.update(hashlib.blake2b(images[number], digest_size=8).digest())
    return int.from_bytes(found.digest(), "big") >> 1


def dump_target(target: Any) -> bytes:
    """Return a stored target as bytes, equal for equal ones; a text may be none of Unicode."""
    return json.dumps(target, ensure_ascii=False, sort_keys=True).encode(errors="surrogatepass")


def read_targets(folder: ShardFolder) -> Digests:
    """Return the digest of every row's target, from the folder's file or, where it has none, from its shards.

    Where the shards are not on this machine either, no two targets count as equal.
    """
    rows = folder.manifest.rows
    found = read_target_file(find_target_file(folder), folder)
    if found is None and folder.remote is None:
        found = np.array([digest for shard in folder.manifest.shards for digest in shard_targets(folder, shard.name)])
        write_where_possible(folder, found)
    return np.arange(rows, dtype=np.int64) if found is None else found[:rows].astype(np.int64)


def find_target_file(folder: ShardFolder) -> Path:
    """Return where the folder's digests are, or would be; those of a URL are copied first."""
    if folder.remote is not None:
        try:
            return folder.remote.fetch(TARGETS)
        except VirtueError:  # written before there were digests
            pass
    return folder.path / TARGETS


def read_target_file(path: Path, folder: ShardFolder) -> Digests | None:
    """Return the digests of a file; None where there is none, or it is of other shards."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            about, found = file.metadata() or {}, file.get_tensor("targets")
    except (SafetensorError, OSError, TypeError):  # of a type that numpy lacks
        return None
    (own, *listed), expected = about.get("sha256", "none").split(), checksums(folder.manifest.shards)
    if found.dtype != np.int64 or found.ndim != 1 or own != checksum_of(found):
        return None
    is_theirs = len(found) >= folder.manifest.rows and listed[: len(expected)] == expected
    return found if is_theirs else None


def checksum_of(targets: Digests) -> str:
    """Return a checksum of digests: every rank plans batches by its own copy of them, and all must be equal."""
    return hashlib.blake2b(np.ascontiguousarray(targets).tobytes(), digest_size=8).hexdigest()


def checksums(shards: Sequence[Shard]) -> list[str]:
    """Return the first digits of every shard's checksum, by which a file of digests is known to be theirs."""
    return [shard.sha256[:16] for shard in shards]


def write_targets(folder: Path, targets: Sequence[int], shards: Sequence[Shard]) -> None:
    """Write the digests of all rows beside the shards."""
    stored = np.array(targets, dtype=np.int64)
    # one entry: safetensors writes several in an order of its own
    about = {"sha256": " ".join([checksum_of(stored), *checksums(shards)])}
    with replace_whole(folder / TARGETS) as temporary:
        save_file({"targets": stored}, temporary, about)


def write_where_possible(folder: ShardFolder, targets: Digests) -> None:
    """Write the digests of a whole folder, unless it cannot be written."""
    if folder.is_limited:
        return
    try:
        write_targets(folder.path, targets.tolist(), folder.manifest.shards)
    except OSError:
        pass


def shard_targets(folder: ShardFolder, name: str) -> Iterator[int]:
    """Yield the digest of every row of a shard, in order; of a record that is damaged, those of no other row.

    Raises VirtueError for a shard that is not the one of its manifest.
    """
    shard, first = folder.shard(name), folder.first_record(name)
    with folder.hold_file(name) as path, open(path, "rb") as file:
        index = RecordIndex.build(folder, name, path)
        for number, rows in enumerate(shard.rows_per_image):
            try:
                record = read_record(read_members(file, index, number), folder.manifest.name, folder.manifest.task)
                index.check_rows(folder, record, rows)
                yield from (target_digest(row.fields, record.data) for row in record.rows)
            except DataError:
                yield from (target_digest({"row": f"{first + number}/{row}"}, ()) for row in range(rows))
