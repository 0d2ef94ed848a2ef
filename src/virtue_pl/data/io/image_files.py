"""The images of a dataset, in folders or still in zips."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from virtue_pl.data.io.archives import APPLE_DOUBLE, MAX_IMAGE_BYTES, is_apple_double, open_archive
from virtue_pl.preprocessing.image_formats import CONVERTED, EXTENSIONS
from virtue_pl.preprocessing.images import ImageHeader, convert_to_png, read_header
from virtue_pl.types import DataError, VirtueError, suggest_path


@dataclass(frozen=True)
class ImageFiles:
    """Images by the path that a table has for them, which may begin with "images/".

    Example:
        >>> files = ImageFiles((Path("data/images"),), archives=(Path("data/images.zip"),))
        >>> files.read("images/mini_train/0000.jpg", key="SCAR_mini/0")  # doctest: +SKIP
    """

    folders: tuple[Path, ...]
    """Folders to look into first, in order."""
    archives: tuple[Path, ...] = ()
    """Zips to look into where no folder has the image."""
    packed: tuple[Path, ...] = ()
    """Archives that must be unpacked first (a compressed tar cannot be read from its middle); named where an image is
    missing.
    """

    @classmethod
    def find(cls, *roots: Path, given: Sequence[Path] = ()) -> ImageFiles:
        """Find the images of official layouts: `images/`, `images.zip` and `images_zip/*.zip` under any of the roots.

        `given` are folders to look into first. Raises VirtueError where one of them does not exist.
        """
        for folder in given:
            if not folder.is_dir():
                raise VirtueError(f"--images {folder}: there is no such folder{suggest_path(folder)}")
        folders = [*given, *(root / "images" for root in roots if (root / "images").is_dir())]
        single = [root / "images.zip" for root in roots if (root / "images.zip").is_file()]
        several = [
            path
            for root in roots
            for path in sorted((root / "images_zip").glob("*.zip"))
            if not is_apple_double(path.name)
        ]
        packed = sorted(
            {
                path
                for root in roots
                for pattern in ("*.tar.gz", "*.tgz", "image-tasks/*.tar.gz")
                for path in root.glob(pattern)
            }
        )
        return cls(
            tuple(folders or [roots[-1] / "images"]),
            (*single, *several),
            tuple(path for path in packed if not is_apple_double(path.name)),
        )

    def read(self, image: str | None, key: str) -> bytes:
        """Return the compressed bytes of an image.

        Raises DataError where it is missing, empty, or would lie outside the folders.
        """
        if not image:
            raise DataError(key, f"no image: {image!r} names no file in {self.folders[0]}")
        if is_apple_double(image):
            raise DataError(key, f"AppleDouble leftover: {image} is what macOS leaves beside a file, no image")
        path = image.removeprefix("images/")
        data = self._read_bytes(path, key)
        if not data:
            raise DataError(key, f"empty image: {self.folders[0] / path} has no bytes")
        if data.startswith(APPLE_DOUBLE):
            raise DataError(key, f"AppleDouble leftover: {image} holds what macOS leaves beside a file, no image")
        return data

    def state(self, image: str | None) -> str:
        """Return what changes when an image's file comes, goes or is written anew, without reading it.

        It is "" where the image is missing.
        """
        path = (image or "").removeprefix("images/")
        for file in (folder / path for folder in self.folders):
            try:
                about = file.stat()
            except OSError:
                continue
            if stat.S_ISREG(about.st_mode):
                return f"{about.st_size} bytes of {about.st_mtime_ns}"
        for archive in archives_for(self.archives, path):
            member = open_archive(archive).members.get(path)
            if member is not None:
                return f"{member.file_size} bytes, CRC {member.CRC}"
        return ""

    def read_checked(self, image: str | None, key: str, max_pixels: int) -> tuple[bytes, ImageHeader]:
        """Return the compressed bytes of an image as shards store it, and its header.

        An image in one of the formats of `CONVERTED` becomes a PNG. Raises DataError, which names the path, as `read`
        does, and for a file that is no image or has more than `max_pixels`.
        """
        data = self.read(image, key)
        with name_path(str(image), key):
            header = read_header(data, key, max_pixels)
            if header.extension in CONVERTED.values():
                data = convert_to_png(data, key, max_pixels)
                header = header._replace(extension=EXTENSIONS["PNG"])
        return data, header

    def _read_bytes(self, path: str, key: str) -> bytes:
        files = [resolve_inside(folder, path, key) for folder in self.folders]
        for file in files:
            if file.is_file():
                return read_file(file, key)
        for archive in archives_for(self.archives, path):
            opened = open_archive(archive)
            if path in opened.members:
                return opened.read(path, key)
        beside = f", nor in {len(self.archives)} archives" if self.archives else ""
        packed = "".join(
            f"; {file} is still packed: unpack it, and give its folder with --images" for file in self.packed[:1]
        )
        raise DataError(key, f"missing image: {self.folders[0] / path} (No such file or directory{beside}{packed})")


def read_named_header(data: bytes, path: str, key: str, max_pixels: int) -> ImageHeader:
    """Return the header of a compressed image. Raises DataError, which names the image's path."""
    with name_path(path, key):
        return read_header(data, key, max_pixels)


@contextmanager
def name_path(path: str, key: str) -> Iterator[None]:
    """Add an image's path to a DataError that is raised within."""
    try:
        yield
    except DataError as error:
        raise DataError(key, f"{error.problem} ({path})") from error


def resolve_inside(folder: Path, path: str, key: str) -> Path:
    """Return a file in a folder. Raises DataError for a path that leads out of it, through links too."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise DataError(key, f"no image: {path!r} names no file in {folder}")
    return file


def read_file(file: Path, key: str) -> bytes:
    """Return the bytes of an image's file. Raises DataError where it cannot be read or is too large."""
    try:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise DataError(key, f"image too large: {file} has more than {MAX_IMAGE_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise DataError(key, f"missing image: {file} ({error.strerror})") from error


def archives_for(archives: Iterable[Path], path: str) -> Iterator[Path]:
    """Yield the archives that may hold the path: the one named like its first folder, if there is one, or else all."""
    found = tuple(archives)
    named = [archive for archive in found if archive.stem == path.split("/")[0]]
    yield from named or found
