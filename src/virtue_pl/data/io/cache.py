"""Copies of shards in a folder that may hold only so much: the least recently read go first, what is being read never
goes.

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
"""Whole copies, and those that are being made or were left by a process that was killed (`RemoteFolder`)."""
FRESH = 60
"""Seconds in which an unlocked copy in the making may be one that is about to be locked."""


class Copy(NamedTuple):
    """used: when it was last read, in nanoseconds."""

    used: int
    bytes: int
    path: Path


@dataclass(frozen=True)
class CacheOptions:
    """Where shards of a URL are copied to, and how many of the copies stay. Raises VirtueError for no room at all.

    Example:
        >>> CacheOptions(max_gb=1.5).max_bytes
        1500000000
    """

    folder: str = "data/cache"
    """Folder for copies of shards that a URL names."""
    max_gb: float | None = None
    """How many gigabytes (10^9 bytes) of such copies stay, over all that share the folder: the least recently read make
    room, what is
    being read stays; default all."""

    def __post_init__(self) -> None:
        if self.max_gb is not None and self.max_gb <= 0:
            raise VirtueError(f"cache.max_gb is {self.max_gb}, expected more than 0, or null for no limit")

    @property
    def max_bytes(self) -> int | None:
        """The limit in bytes; None for any number."""
        return None if self.max_gb is None else round(self.max_gb * 1e9)


def make_room(cache: Path, limit: int, coming: int) -> None:
    """Removes copies until `coming` bytes more are within `limit`, or all that is left is in use. Raises VirtueError
    where they never can be.

    Processes that make room at the same moment may each exceed the limit by what they are about to copy.
    """
    if coming > limit:
        too_large = f"cache.max_gb is {limit / 1e9:g}, but one shard has {coming / 1e9:g} GB"
        raise VirtueError(f"{too_large}: raise cache.max_gb, or write smaller shards (--shard-size)")
    with (cache / LOCK).open("a") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        found = sorted(copies(cache))
        total = sum(copy.bytes for copy in found)
        for copy in found:
            if total + coming <= limit:
                return
            if not is_fresh(copy) and is_removed(copy.path):
                total -= copy.bytes


def copies(cache: Path) -> Iterator[Copy]:
    for path in (path for pattern in COPIES for path in cache.glob(pattern)):
        try:
            about = path.stat()
        except FileNotFoundError:  # another process made it whole, or gave it up
            continue
        yield Copy(about.st_mtime_ns, about.st_size, path)


def is_fresh(copy: Copy) -> bool:
    return copy.path.name.startswith(".") and time.time() - copy.used / 1e9 < FRESH


def is_removed(path: Path) -> bool:
    """Removes the copy unless somebody holds it."""
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
def held(path: Path) -> Iterator[bool]:
    """Keeps the copy from being removed, and notes that it is read; gives False where it has been removed already."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        there = is_same(path, stream)
        if there:
            os.utime(path)
        yield there


def is_same(path: Path, stream: IO[bytes]) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
