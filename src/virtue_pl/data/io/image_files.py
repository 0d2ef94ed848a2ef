"""Where a dataset's images are: in folders, or still in zips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtue_pl.data.io.archives import APPLE_DOUBLE, MAX_IMAGE_BYTES, is_apple_double, open_archive
from virtue_pl.preprocessing.images import ImageHeader, read_header
from virtue_pl.types import DataError, VirtueError


@dataclass(frozen=True)
class ImageFiles:
    """ImageBatch by the path that a table has for them; a path may begin with "images/".

    folders: looked into in order. archives: zips, looked into where no folder has the image. packed: what must be
    unpacked first, which
    is said where an image is missing: a compressed tar cannot be read from its middle.
    """

    folders: tuple[Path, ...]
    archives: tuple[Path, ...] = ()
    packed: tuple[Path, ...] = ()

    @classmethod
    def below(cls, *roots: Path, given: Sequence[Path] = ()) -> ImageFiles:
        """What official layouts have: `images/`, `images.zip` and `images_zip/*.zip`, under any of the roots that is
        there.

        given: folders to look into first. Raises VirtueError where one is not there.
        """
        for folder in given:
            if not folder.is_dir():
                raise VirtueError(f"--images {folder}: there is no such folder")
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
        """The image's bytes as they are. Raises DataError where it is missing, empty, or would lie outside of the
        folders.
        """
        if not image:
            raise DataError(key, f"no image: {image!r} names no file in {self.folders[0]}")
        if is_apple_double(image):
            raise DataError(key, f"AppleDouble leftover: {image} is what macOS leaves beside a file, no image")
        path = image.removeprefix("images/")
        data = self._found(path, key)
        if not data:
            raise DataError(key, f"empty image: {self.folders[0] / path} has no bytes")
        if data.startswith(APPLE_DOUBLE):
            raise DataError(key, f"AppleDouble leftover: {image} holds what macOS leaves beside a file, no image")
        return data

    def read_checked(self, image: str | None, key: str, max_pixels: int) -> tuple[bytes, ImageHeader]:
        """The image's bytes, and what they say of it. Raises DataError, which names the path, for what is no image or
        too large, too.
        """
        data = self.read(image, key)
        return data, header_of(data, str(image), key, max_pixels)

    def _found(self, path: str, key: str) -> bytes:
        files = [confined(folder, path, key) for folder in self.folders]
        for file in files:
            if file.is_file():
                return read_file(file, key)
        for archive in nearest(self.archives, path):
            opened = open_archive(archive)
            if path in opened.members:
                return opened.read(path, key)
        beside = f", nor in {len(self.archives)} archives" if self.archives else ""
        packed = "".join(
            f"; {file} is still packed: unpack it, and give its folder with --images" for file in self.packed[:1]
        )
        raise DataError(key, f"missing image: {self.folders[0] / path} (No such file or directory{beside}{packed})")


def header_of(data: bytes, path: str, key: str, max_pixels: int) -> ImageHeader:
    """What an image says of itself. Raises DataError, which names its path."""
    try:
        return read_header(data, key, max_pixels)
    except DataError as error:
        raise DataError(key, f"{error.problem} ({path})") from error


def confined(folder: Path, path: str, key: str) -> Path:
    """The file in the folder. Raises DataError for a path that leads out of it, through links too."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise DataError(key, f"no image: {path!r} names no file in {folder}")
    return file


def read_file(file: Path, key: str) -> bytes:
    try:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise DataError(key, f"image too large: {file} has more than {MAX_IMAGE_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise DataError(key, f"missing image: {file} ({error.strerror})") from error


def nearest(archives: Iterable[Path], path: str) -> Iterator[Path]:
    """The archives that may hold the path: the one called like its first folder, if there is one, or else all."""
    found = tuple(archives)
    named = [archive for archive in found if archive.stem == path.split("/")[0]]
    yield from named or found
