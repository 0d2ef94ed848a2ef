"""Digests of the names of a folder's regions, row by row, by which regions of one object are found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.row_digests import Digests, RowDigests
from virtue_pl.types import VirtueError

NO_CATEGORY = -1
"""Digest of a row whose region has no name."""


def category_digest(row: Mapping[str, Any], images: Sequence[bytes]) -> int:
    """Return 63 bits that are equal for equal names (`category`) of a row's region; `NO_CATEGORY` without one."""
    name = row.get("category")
    if not isinstance(name, str) or not name.strip():
        return NO_CATEGORY
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1


CATEGORY_DIGESTS = RowDigests("categories", category_digest)
"""Digests of names, which are written beside shards when they are first read."""
CATEGORIES = CATEGORY_DIGESTS.file


def read_categories(folder: ShardFolder) -> Digests:
    """Return the digest of the name of every row's region, from the folder's file or, where it has none, its shards.

    Raises VirtueError where the folder is a URL that has no such file.
    """
    found = CATEGORY_DIGESTS.read(folder)
    if found is None:
        raise VirtueError(
            f"{folder.path}: which regions have one name is only known of shards on this machine, or from {CATEGORIES}"
            " beside them: copy the shards here, and name their folder"
        )
    return found
