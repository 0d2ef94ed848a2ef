"""Folders of shards at a URL (any that fsspec reads), copied file by file to a local cache when they are first read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from virtue_pl.data.io.cache import CacheOptions, hold_copy, make_room
from virtue_pl.types import VirtueError

ATTEMPTS = 5
"""How often a file is asked for before it is given up."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""
CHUNK = 1 << 20
MAX_MANIFEST = 1 << 30
"""Bytes of the longest file that is read without its length being given."""


def is_remote(path: str | Path) -> bool:
    """Return whether a path is a URL."""
    return "://" in str(path)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL, and its copy below the folder of `cache`.

    A copy is written under a temporary name, checked, and moved, so that several workers may ask for the same file.

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

        Raises VirtueError where the file cannot be read.
        """
        if Path(name).name != name or name in ("", ".", ".."):
            raise VirtueError(
                f"{self.option}: {self.url} names a file {name!r}, expected a name without folders: write the shards"
                " again"
            )
        path = self.path / name
        if size is not None and path.is_file() and path.stat().st_size == size:
            return path
        self.path.mkdir(parents=True, exist_ok=True)
        limit = self.cache.max_bytes
        if limit is not None and size is not None:
            make_room(Path(self.cache.folder), limit, size)
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return self._copy(name, path, size, sha256)
            except FileNotFoundError:
                raise VirtueError(
                    f"{self.option}: {self.url}/{name} is not there: write the shards with `virtue-pl shards`, or"
                    f" change {self.option}"
                ) from None
            except (ImportError, ValueError) as error:
                raise VirtueError(
                    f"{self.option}: {self.url}: {str(error).splitlines()[0]}: change {self.option}"
                ) from error
            except Exception as error:  # every protocol has errors of its own; the last one is told
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VirtueError(
            f"{self.option}: {self.url}/{name} could not be read in {ATTEMPTS} attempts ({problem}): mend the network,"
            f" or change {self.option}"
        )

    def _copy(self, name: str, path: Path, size: int | None, sha256: str | None) -> Path:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)
                found, digest = copy(
                    f"{self.url.rstrip('/')}/{name}", target.write, MAX_MANIFEST if size is None else size
                )
            if sha256 is not None and digest != sha256:
                raise OSError(f"{found} bytes of another content than the manifest says, {size}")
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path


def copy(url: str, write: Callable[[bytes], object], limit: int) -> tuple[int, str]:
    """Read a URL from beginning to end into `write`; return its length and SHA-256.

    Raises OSError for more than `limit` bytes.
    """
    import fsspec

    digest, found = hashlib.sha256(), 0
    with fsspec.open(url, "rb", **({"block_size": 0} if url.startswith("http") else {})) as source:
        while chunk := source.read(CHUNK):
            found += len(chunk)
            if found > limit:
                raise OSError(f"more than {limit} bytes")
            digest.update(chunk)
            write(chunk)
    return found, digest.hexdigest()
