"""Options of a server: its limits, its keys, and the hosts that it reads images of."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from virtue_pl.types import MAX_PIXELS, VirtueError

KEY_VARIABLE = "VIRTUE_API_KEY"
"""The environment variable of a key."""

MIN_KEY_LENGTH = 16


LEAST = {"wait_seconds": 0, "client_seconds": 0.1}
"""Least values of limits that may be less than 1."""


@dataclass(frozen=True)
class Limits:
    """Limits of what a server accepts.

    body_bytes: of one body. bytes_in_flight: of all bodies together. body_objects: lists and objects of one body.
    requests: that are answered at a time. queued_rows: rows that are accepted and not embedded yet. request_rows:
    embeddings of one request. characters: of one text. images: of one embedding. regions: of one image. hits: of one
    search. pixels: of one image. pixels_in_flight: of the images of all requests that are being answered.
    batch_tokens: roughly the tokens of one batch. batch_rows: rows of one batch. client_seconds: in which a client
    sends a body, or reads a part of a reply. wait_seconds: how long a batch waits at least for rows that are on their
    way; 0 never waits. retry_seconds: what a client that is refused is asked to wait.

    Example:
        >>> Limits(queued_rows=8, request_rows=9)
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: request_rows is 9, expected at most queued_rows = 8
    """

    body_bytes: int = 32 << 20
    bytes_in_flight: int = 512 << 20
    body_objects: int = 100_000
    requests: int = 256
    queued_rows: int = 2048
    request_rows: int = 512
    characters: int = 100_000
    images: int = 32
    regions: int = 256
    hits: int = 10_000
    pixels: int = MAX_PIXELS
    pixels_in_flight: int = 400_000_000
    batch_tokens: int = 16_384
    batch_rows: int = 16
    client_seconds: float = 60.0
    wait_seconds: float = 0.004
    retry_seconds: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = LEAST.get(name, 1)
            if value < least:
                raise VirtueError(f"{name} is {value}, expected at least {least}")
        for part, whole in (("request_rows", "queued_rows"), ("pixels", "pixels_in_flight")):
            if getattr(self, part) > getattr(self, whole):
                raise VirtueError(f"{part} is {getattr(self, part)}, expected at most {whole} = {getattr(self, whole)}")


@dataclass(frozen=True)
class ServerOptions:
    """Everything about a server but its model.

    name: by which clients name the model. keys: of which each request carries one; none for a server that only this
    machine reaches. image_hosts: whose URLs are read as images. decode_threads: threads that decode images.
    recent_images: images that are found again by their uuid.

    Example:
        >>> ServerOptions(host="0.0.0.0")
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: host is '0.0.0.0', which other machines reach, without a key: ...
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "virtue"
    keys: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    decode_threads: int = 2
    recent_images: int = 32
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise VirtueError(
                f"host is {self.host!r}, which other machines reach, without a key: give --api-key-file, or set"
                f" {KEY_VARIABLE}"
            )
        for key in self.keys:
            if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
                raise VirtueError(
                    f"a key of {len(key)} characters, expected at least {MIN_KEY_LENGTH}, printable and without spaces"
                )

    def find_key(self, key: bytes) -> int | None:
        """Return the number of the server's key that one is, None for none of them.

        It takes a time that says nothing of how much of it is right.
        """
        given = sha256(key).digest()
        matches = [hmac.compare_digest(given, sha256(own.encode()).digest()) for own in self.keys]
        return matches.index(True) if any(matches) else None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(header: str, own: Sequence[str] = ()) -> bool:
    """Return whether a request's Host header names this machine, as a page of another site cannot make it do.

    own: further names that are right.
    """
    name = header.partition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    return is_loopback(name) or name in own
