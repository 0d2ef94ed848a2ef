"""ImageBatch read out of a zip without unpacking it: nothing in it is trusted."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from virtue_pl.types import DataError, VirtueError

MAX_MEMBERS = 5_000_000
"""An archive that lists more is refused: its table of contents alone would fill the memory."""

MAX_IMAGE_BYTES = 256 * 2**20
"""A compressed image that claims, or turns out, to be larger is no image."""

APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""How the bytes begin that macOS leaves beside a file."""

_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Archive(NamedTuple):
    """An open zip and its images by path, "images/" in front left out."""

    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]

    def read(self, path: str, key: str) -> bytes:
        """Raises DataError for a member that is encrypted, damaged, or larger than `MAX_IMAGE_BYTES`."""
        member = self.members[path]
        if member.file_size > MAX_IMAGE_BYTES:
            raise DataError(
                key, f"image too large: {path} claims {member.file_size:,} bytes, more than {MAX_IMAGE_BYTES:,}"
            )
        try:
            with self.file.open(member) as stream:
                return stream.read(MAX_IMAGE_BYTES)
        except _DAMAGE as error:
            raise DataError(key, f"damaged archive member: {path} in {self.file.filename} ({error})") from error


@lru_cache(maxsize=4)
def open_archive(path: Path) -> Archive:
    """The archive, kept open for the next image. Raises VirtueError for one that is damaged or unsafe as a whole.

    Unsafe is a member that would lie outside the folder, a link, or more than `MAX_MEMBERS`. AppleDouble leftovers are
    passed over.
    """
    try:
        file = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise VirtueError(f"{path} is no zip that can be read ({error}): fetch it again") from error
    found = file.infolist()
    if len(found) > MAX_MEMBERS:
        file.close()
        raise VirtueError(
            f"{path} has {len(found):,} members, more than {MAX_MEMBERS:,}: unpack it yourself if you trust it"
        )
    members = {}
    for member in found:
        if not member.is_dir() and not is_apple_double(member.filename):
            members[inner_path(member, path)] = member
    return Archive(file, members)


def inner_path(member: zipfile.ZipInfo, archive: Path) -> str:
    """The member's path below "images/". Raises VirtueError for one outside the folder, and for a link."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise VirtueError(
            f"{archive}: the member {member.filename!r} would lie outside the folder: the archive is not read"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise VirtueError(f"{archive}: the member {member.filename!r} is a link: the archive is not read")
    return str(path).removeprefix("images/")


def is_apple_double(path: str) -> bool:
    """Whether a path is what macOS leaves beside a file in an archive: `._name`, or anything in `__MACOSX`."""
    parts = PurePosixPath(path).parts
    return bool(parts) and (parts[-1].startswith("._") or "__MACOSX" in parts)
