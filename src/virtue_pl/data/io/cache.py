"""Copies of shards in a folder of limited size: the least recently read are removed first, those in use never.

Whoever reads or writes a copy holds a lock on it, which ends with its process; so several processes may share a cache.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from virtue_pl.types import VirtueError

LOCK = ".lock"
COPIES = ("*-????????????/*.tar", "*-????????????/.*.tar.*")
"""Patterns of whole copies, and of those that are being made or were left by a killed process (see `RemoteFolder`)."""
FRESH = 60
"""For so many seconds an unlocked copy in the making may be one that is about to be locked."""


class Copy(NamedTuple):
    """A copy of a shard, ordered by the time of its last reading.

    Example:
        >>> Copy(used=0, bytes=10_240, path=Path("cache/shards-0123456789ab/shard-000000.tar")).bytes
        10240
    """

    used: int
    bytes: int
    path: Path


@dataclass(frozen=True)
class CacheOptions:
    """Cache of shards that are read from a URL: its folder and size.

    Raises VirtueError for a limit that keeps none.

    Example:
        >>> CacheOptions(max_gb=1.5).max_bytes
        1500000000
    """

    folder: str = "data/cache"
    """Folder for copies of shards that a URL names."""
    max_gb: float | None = None
    """Gigabytes (10^9 bytes) of such copies that are kept, over all runs that share the folder: the least recently read
    are removed, those in use never; default all.
    """

    def __post_init__(self) -> None:
        if self.max_gb is not None and self.max_gb <= 0:
            raise VirtueError(f"cache.max_gb is {self.max_gb}, expected more than 0, or null for no limit")

    @property
    def max_bytes(self) -> int | None:
        """Return the limit in bytes; None for no limit."""
        return None if self.max_gb is None else round(self.max_gb * 1e9)


def make_room(cache: Path, limit: int, coming: int) -> None:
    """Remove copies until `coming` more bytes are within `limit`, or all that are left are in use.

    Processes that make room at the same moment may each exceed the limit by what they are about to copy. Raises
    VirtueError where `coming` alone is above the limit.
    """
    if coming > limit:
        too_large = f"cache.max_gb is {limit / 1e9:g}, but one shard has {coming / 1e9:g} GB"
        raise VirtueError(f"{too_large}: raise cache.max_gb, or write smaller shards (--shard-size)")
    with (cache / LOCK).open("a") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        found = sorted(list_copies(cache))
        total = sum(copy.bytes for copy in found)
        for copy in found:
            if total + coming <= limit:
                return
            if not is_fresh(copy) and try_remove(copy.path):
                total -= copy.bytes


def list_copies(cache: Path) -> Iterator[Copy]:
    """Yield the copies in a cache, whole or in the making."""
    for path in (path for pattern in COPIES for path in cache.glob(pattern)):
        try:
            about = path.stat()
        except FileNotFoundError:  # another process made it whole, or gave it up
            continue
        yield Copy(about.st_mtime_ns, about.st_size, path)


def is_fresh(copy: Copy) -> bool:
    """Return whether a copy is in the making and may be about to be locked."""
    return copy.path.name.startswith(".") and time.time() - copy.used / 1e9 < FRESH


def try_remove(path: Path) -> bool:
    """Remove a copy unless a process holds it; return whether it is gone."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@contextmanager
def hold_copy(path: Path) -> Iterator[bool]:
    """Keep a copy from being removed within the block, and mark it as read; provide False where it has been removed."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        is_there = is_same(path, stream)
        if is_there:
            os.utime(path)
        yield is_there


def is_same(path: Path, stream: IO[bytes]) -> bool:
    """Return whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
