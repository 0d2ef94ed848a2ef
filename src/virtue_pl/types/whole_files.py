"""Files that are written whole or not at all: beside their place, and then renamed."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

LEFT_BEHIND = 60
"""Seconds after which a temporary file that no process holds counts as left behind by one that was killed."""


@contextmanager
def replace_whole(path: Path, sync: bool = False) -> Iterator[Path]:
    """Provide a temporary path beside `path`, which replaces `path` if the block succeeds, and is removed if not.

    Args:
        path: the file to write; its folder is made.
        sync: wait until the file's content, and then its name, are on the disk: it outlives a loss of power.

    Raises OSError, with `path` as its file name where it has none, if the disk is full or cannot be written.

    Example:
        >>> with replace_whole(Path("report.json")) as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}")
        try:
            yield temporary
            if sync:
                sync_to_disk(temporary)
            os.replace(temporary, path)
            if sync:
                sync_to_disk(path.parent)
        finally:
            with suppress(OSError):  # of a disk that has gone; the first error is the one to tell
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block, such as one of a write to a full disk, `path` as its file name if it has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_left_behind(path: Path) -> None:
    """Remove the temporary files of `replace_whole` for `path` that are of killed processes.

    They are those that no process has locked, and that have not been written for `LEFT_BEHIND` seconds.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if pattern.fullmatch(other.name):
            with suppress(OSError):  # held by a process, gone, or without locks
                if time.time() - other.stat().st_mtime > LEFT_BEHIND:
                    with other.open("rb") as stream:
                        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        other.unlink()
