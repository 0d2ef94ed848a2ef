"""Folders of shards at a URL (any that fsspec reads), copied file by file to a local cache when they are first read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from virtue_pl.data.io.cache import CacheOptions, hold_copy, is_same, make_room
from virtue_pl.data.io.transfer import LOG, Transfer, announce, problem_of
from virtue_pl.types import VirtueError, is_disk_error, naming

ATTEMPTS = 7
"""Number of attempts in a row without a byte coming after which a file is given up."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""
REFUSED = (401, 403, 410)
"""Statuses of a server that has no such file, or does not give it."""
TAKEN_WAIT = 0.1
"""Seconds between two looks at a copy that another process is making."""
MAX_MANIFEST = 1 << 30
"""Bytes of the longest file that is read without its length being given."""


class AbsentFile(VirtueError):
    """A file that a server says it does not have, or does not give: asking again would not help.

    Example:
        >>> raise AbsentFile("train: https://example.org/shards/manifest.json is not there")
        Traceback (most recent call last):
        virtue_pl.data.io.remote.AbsentFile: train: https://example.org/shards/manifest.json is not there
    """


def is_remote(path: str | Path) -> bool:
    """Return whether a path is a URL."""
    return "://" in str(path)


def check_file_name(name: object) -> str:
    """Return the name of a file inside a folder of shards. Raises ValueError for one that could lie elsewhere."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError(f"a file is called {name!r}, expected a name without folders")
    return name


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL, and its copy below the folder of `cache`.

    A copy is written under a temporary name, checked, and moved. One process copies a file while the others that want
    it wait; a copy that was broken off is gone on with, by the same process or a later one.

    Example:
        >>> folder = RemoteFolder("https://example.org/shards/SCAR_mini", version="0123")
        >>> folder.path.name
        'SCAR_mini-90e3844a31d1'
    """

    url: str
    cache: CacheOptions = field(default_factory=CacheOptions)
    version: str = ""
    """Of the folder's content: another one is copied to another folder, so that old and new shards are never mixed."""
    option: str = "train"
    """The setting that gave the URL, for errors."""

    @property
    def path(self) -> Path:
        """Return the folder of the copies: one of its own for each URL and version."""
        url = self.url.rstrip("/")
        return (
            Path(self.cache.folder)
            / f"{url.rpartition('/')[2]}-{hashlib.sha256(f'{url} {self.version}'.encode()).hexdigest()[:12]}"
        )

    @contextmanager
    def hold_file(self, name: str, size: int, sha256: str) -> Iterator[Path]:
        """Provide the local copy of a file, as by `fetch`, which nobody removes within the block."""
        while True:
            path = self.fetch(name, size, sha256)
            with hold_copy(path) as there:
                if there:
                    yield path
                    return

    def fetch(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """Return the local copy of a file, which is made unless one of that size exists.

        Raises AbsentFile where the server does not give it, VirtueError where it cannot be read.
        """
        try:
            path = self.path / check_file_name(name)
        except ValueError as error:
            raise VirtueError(f"{self.option}: {self.url}: {error}: write the shards again") from error
        if has_size(path, size):
            return path
        self.path.mkdir(parents=True, exist_ok=True)
        url = f"{self.url.rstrip('/')}/{name}"
        with hold_partial(path, url) as partial:
            if has_size(path, size):  # another process has made it meanwhile
                Path(partial.name).unlink(missing_ok=True)
                return path
            limit = self.cache.max_bytes
            if limit is not None and size is not None:
                make_room(Path(self.cache.folder), limit, size)
            try:
                with naming(path):
                    self._copy(Transfer(url, partial, size, MAX_MANIFEST), sha256)
                os.replace(partial.name, path)
            except BaseException:
                if size is None or not os.fstat(partial.fileno()).st_size:  # nothing to go on with
                    Path(partial.name).unlink(missing_ok=True)
                raise
        return path

    def _copy(self, transfer: Transfer, sha256: str | None) -> None:
        """Transfer a file, as often as it takes, unless nothing comes any more."""
        failures, furthest, problem = 0, transfer.done, ""
        with announce(transfer.describe):
            while failures < ATTEMPTS:
                try:
                    transfer.read_on()
                    transfer.check(sha256)
                    return
                except FileNotFoundError:
                    raise AbsentFile(
                        f"{self.option}: {transfer.url} is not there: write the shards with `virtue-pl shards`, or"
                        f" change {self.option}"
                    ) from None
                except (ImportError, ValueError) as error:
                    raise VirtueError(
                        f"{self.option}: {self.url}: {str(error).splitlines()[0]}: change {self.option}"
                    ) from error
                except Exception as error:  # every protocol has errors of its own; the last one is told
                    if is_disk_error(error):
                        raise
                    problem = problem_of(error)
                    if getattr(error, "status", None) in REFUSED:
                        raise AbsentFile(
                            f"{self.option}: {transfer.url} is not given ({problem}): change {self.option}, or what may"
                            " be read there"
                        ) from error
                failures = 1 if transfer.done > furthest else failures + 1
                furthest = max(furthest, transfer.done)
                if failures < ATTEMPTS:
                    pause = FIRST_WAIT * 2 ** (failures - 1)
                    LOG.warning(
                        f"{transfer.describe()}: {problem}; attempt {failures + 1} of {ATTEMPTS} in {pause:g} s"
                    )
                    time.sleep(pause)
        raise VirtueError(
            f"{self.option}: {transfer.url} could not be read, in {ATTEMPTS} attempts without a byte ({problem}):"
            f" mend the network, or change {self.option}"
        )


def has_size(path: Path, size: int | None) -> bool:
    """Return whether a file is there and of the size that is known of it."""
    return size is not None and path.is_file() and path.stat().st_size == size


@contextmanager
def hold_partial(path: Path, url: str) -> Iterator[BinaryIO]:
    """Provide the file beside `path` that a copy of it is written to, which no other process writes within the block.

    It holds what earlier processes have copied.
    """
    partial = path.with_name(f".{path.name}.part")
    stream = open_locked(partial)
    if stream is None:
        with announce(lambda: f"waiting for another process, which copies {url}"):
            while (stream := open_locked(partial)) is None:
                time.sleep(TAKEN_WAIT)
    with stream:
        yield stream


def open_locked(partial: Path) -> BinaryIO | None:
    """Open a copy in the making, and lock it; None where another process does so, or has just made it whole.

    Nobody waits for the lock itself, which readers may hold once the copy is whole.
    """
    stream = partial.open("a+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    if is_same(partial, stream):
        return stream
    stream.close()
    return None
