"""Images in a zip, read without unpacking it; nothing in the zip is trusted."""

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
"""An archive that lists more members is refused: its table of contents alone would fill the memory."""

MAX_IMAGE_BYTES = 256 * 2**20
"""A compressed image that claims, or turns out, to be larger is refused."""

APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""First bytes of the AppleDouble files that macOS leaves beside other files."""

_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Archive(NamedTuple):
    """An open zip and its images by path, without "images/" in front.

    Example:
        >>> archive = open_archive(Path("images.zip"))  # doctest: +SKIP
        >>> archive.read("mini_train/0000.jpg", key="SCAR_mini/0")[:2]  # doctest: +SKIP
        b'\\xff\\xd8'
    """

    file: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]

    def read(self, path: str, key: str) -> bytes:
        """Return the bytes of an image.

        Raises DataError for a member that is encrypted, damaged, or larger than `MAX_IMAGE_BYTES`.
        """
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


def open_archive(path: Path) -> Archive:
    """Open an archive, or return it if it is open already and has not been written anew.

    AppleDouble leftovers are passed over. Raises VirtueError for an archive that is damaged, or unsafe as a whole: with
    a member that would lie outside the folder, with a link, or with more than `MAX_MEMBERS` members.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise VirtueError(f"{path} cannot be read ({error.strerror}): fetch it again") from error
    return _open_archive(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _open_archive(path: Path, inode: int, size: int, changed: int) -> Archive:
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
    """Return the member's path below "images/". Raises VirtueError for one outside the folder, and for a link."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise VirtueError(
            f"{archive}: the member {member.filename!r} would lie outside the folder: the archive is not read"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise VirtueError(f"{archive}: the member {member.filename!r} is a link: the archive is not read")
    return str(path).removeprefix("images/")


def is_apple_double(path: str) -> bool:
    """Return whether a path is one that macOS adds to an archive.

    These are `._name` beside a file, and everything in `__MACOSX`.
    """
    parts = PurePosixPath(path).parts
    return bool(parts) and (parts[-1].startswith("._") or "__MACOSX" in parts)
