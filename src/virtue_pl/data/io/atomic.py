"""Files that are written whole or not at all, and checksums of files and texts."""

from __future__ import annotations

import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

from virtue_pl.types import replace_whole

JUST_NOW = 2_000_000_000
"""Nanoseconds for which a file counts as written just now."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_sha256(path: Path) -> str:
    """Return a file's SHA-256, which each process computes once for as long as the file and its time are the same.

    A file that was written just now may change again within one tick of its clock, so nothing is remembered of it.
    """
    about = path.stat()
    if abs(time.time_ns() - about.st_mtime_ns) < JUST_NOW:
        return sha256(path)
    return _sha256_of(str(path), about.st_ino, about.st_size, about.st_mtime_ns)


@cache
def _sha256_of(path: str, inode: int, size: int, changed: int) -> str:
    return sha256(Path(path))


def has_checksum(path: Path, checksum: str) -> bool:
    """Return whether the file exists and its content has this SHA-256."""
    return path.is_file() and sha256(path) == checksum


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dictionary where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: Any) -> None:
    """Write `content` as an indented JSON file, whole or not at all."""
    with replace_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest(text: str) -> str:
    """Return 24 hexadecimal digits that identify a text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
