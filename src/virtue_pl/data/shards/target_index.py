"""Digests of a folder's targets, row by row, by which equal ones are found without reading any shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virtue_pl.data.shards.manifest import Shard, ShardFolder
from virtue_pl.data.shards.row_digests import Digests, RowDigests


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


TARGET_DIGESTS = RowDigests("targets", target_digest)
"""Digests of targets, which `ShardWriter` writes beside shards of pairs."""
TARGETS = TARGET_DIGESTS.file


def read_targets(folder: ShardFolder) -> Digests:
    """Return the digest of every row's target, from the folder's file or, where it has none, from its shards.

    Where the shards are not on this machine either, no two targets count as equal.
    """
    found = TARGET_DIGESTS.read(folder)
    return np.arange(folder.manifest.rows, dtype=np.int64) if found is None else found


def write_targets(folder: Path, targets: Sequence[int], shards: Sequence[Shard]) -> None:
    """Write the digests of all rows' targets beside the shards."""
    TARGET_DIGESTS.write(folder, targets, shards)
