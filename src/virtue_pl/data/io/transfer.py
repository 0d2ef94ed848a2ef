"""The transfer of one file from a URL: silence is limited, not duration, and it goes on where it was broken off."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, BinaryIO

SILENCE = 60.0
"""Seconds without a byte after which a connection is given up, and the file asked for again."""
FIRST_NOTICE = 15.0
"""Seconds of waiting after which it is said what for; then again after twice as long, and so on."""
LAST_NOTICE = 240.0
"""The most seconds between two such lines."""
CHUNK = 1 << 20
LOG = logging.getLogger(__name__)


class BrokenTransfer(OSError):
    """A transfer that ended early, or gave something else than was asked for; it can be tried again.

    Example:
        >>> raise BrokenTransfer("it broke off after 7 bytes")
        Traceback (most recent call last):
        virtue_pl.data.io.transfer.BrokenTransfer: it broke off after 7 bytes
    """


class Transfer:
    """The transfer of a file from a URL to an open one, behind what that holds already.

    Args:
        url: of any protocol of fsspec.
        target: opened for appending and reading; empty where `size` is not given.
        size: of the whole file, if it is known.
        limit: bytes of the longest file that is read where its size is not known.

    Example:
        >>> with open("shard.part", "a+b") as target:  # doctest: +SKIP
        ...     transfer = Transfer("https://example.org/shard.tar", target, size=10_240)
        ...     transfer.read_on()
        ...     transfer.check("0123...")
    """

    def __init__(self, url: str, target: BinaryIO, size: int | None, limit: int) -> None:
        self.url = url
        self.size = size
        self.limit = limit if size is None else size
        self.done = 0
        """Number of bytes that are there."""
        self._target = target
        self._tag = ""
        self._digest = hashlib.sha256()
        self._started = self._last = time.monotonic()
        target.seek(0)
        if size is None:
            self.restart()
        while chunk := target.read(CHUNK):
            self._count(chunk)

    def restart(self) -> None:
        """Forget what was transferred."""
        self._target.truncate(0)
        self.done, self._tag, self._digest = 0, "", hashlib.sha256()

    def read_on(self) -> None:
        """Read what is missing.

        Raises FileNotFoundError where there is no such file, BrokenTransfer for one that is not as long as it should
        be, and what the protocol raises where it breaks off; what came by then is kept.
        """
        if self.done > self.limit:
            self.restart()
        if self.size is not None and self.done == self.size:
            return
        with self._open() as source:
            while chunk := source.read(CHUNK):
                if self.done + len(chunk) > self.limit:
                    self.restart()
                    raise BrokenTransfer(f"more than {self.limit:,} bytes")
                self._target.write(chunk)
                self._count(chunk)
        if self.size is not None and self.done < self.size:
            raise BrokenTransfer(f"it broke off after {self.done:,} of {self.size:,} bytes")

    def check(self, sha256: str | None) -> None:
        """Write what is buffered. Raises BrokenTransfer, and starts anew, where the content has another checksum."""
        self._target.flush()
        if sha256 is not None and self._digest.hexdigest() != sha256:
            done = self.done
            self.restart()
            raise BrokenTransfer(f"{done:,} bytes of another content than the manifest says")

    def describe(self) -> str:
        """Return what is waited for, for how long, and how far it has come."""
        now = time.monotonic()
        of = "" if self.size is None else f" of {self.size:,}"
        return (
            f"waiting for {self.url}: {self.done:,}{of} bytes after {now - self._started:.0f} s, the last came"
            f" {now - self._last:.0f} s ago"
        )

    def _count(self, chunk: bytes) -> None:
        self.done += len(chunk)
        self._digest.update(chunk)
        self._last = time.monotonic()

    def _open(self) -> Any:
        """Open the URL at the first missing byte."""
        from fsspec.core import url_to_fs

        if not self.url.startswith(("http://", "https://")):
            system, path = url_to_fs(self.url)
            source = system.open(path, "rb")
            source.seek(self.done)
            return source
        from aiohttp import ClientTimeout

        silence = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        system, path = url_to_fs(self.url, client_kwargs={"timeout": silence})
        # a size spares a request for it, and block_size 0 asks for a stream
        source = system.open(path, "rb", block_size=0, size=1, headers=self._headers())
        try:
            self._check_reply(source.r.status, source.r.headers)
        except BaseException:
            source.close()
            raise
        return source

    def _headers(self) -> dict[str, str]:
        """Return what is asked for: bytes as they are, of the file that the first ones were of."""
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self._tag:
                headers["If-Range"] = self._tag
        return headers

    def _check_reply(self, status: int, headers: Any) -> None:
        """Begin anew where a server does not go on with the same file; raise BrokenTransfer for another length."""
        tag = str(headers.get("ETag") or "")
        if self.done and status != 206:  # it sends the whole file
            self.restart()
        elif self.done:
            start = re.match(r"bytes (\d+)-", str(headers.get("Content-Range")))
            if start is None or int(start[1]) != self.done or (self._tag and tag and tag != self._tag):
                self.restart()
                raise BrokenTransfer("it goes on with another file, or elsewhere: it is read from its beginning")
        self._tag = "" if tag.startswith("W/") else tag
        length = headers.get("Content-Length", "")
        if self.size is not None and length.isdecimal() and self.done + int(length) != self.size:
            found = self.done + int(length)
            self.restart()
            raise BrokenTransfer(f"the file has {found:,} bytes, expected {self.size:,}")


@contextmanager
def announce(describe: Callable[[], str]) -> Iterator[None]:
    """Log, from time to time while the block runs, what is waited for."""
    is_over = Event()

    def tell() -> None:
        pause = FIRST_NOTICE
        while not is_over.wait(pause):
            LOG.warning(describe())
            pause = min(2 * pause, LAST_NOTICE)

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


def problem_of(error: Exception) -> str:
    """Return what broke a transfer, in one line."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {SILENCE:g} s"
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    return str(error).splitlines()[0] if str(error) else type(error).__name__
