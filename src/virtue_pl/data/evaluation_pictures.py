"""The pictures of an evaluation by content: found once, decoded when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.picture_files import PictureFiles, header_of
from virtue_pl.data.records import content_key
from virtue_pl.images import MAX_PIXELS, decode, read_header, resize_to_square
from virtue_pl.types import DataError


@dataclass(frozen=True)
class FilePicture:
    """A picture by the path that a table has for it."""

    images: PictureFiles
    path: str

    def read(self, key: str) -> bytes:
        return self.images.read(self.path, key)


@dataclass(frozen=True)
class TarPicture:
    """A picture's bytes inside a tar."""

    tar: Path
    start: int
    size: int

    def read(self, key: str) -> bytes:
        try:
            with self.tar.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise DataError(key, f"missing picture: {self.tar} ({error.strerror})") from error


class PictureLibrary:
    """Where every picture is, under the key of its content; the same picture in two places is one.

    Args:
        resize_to_square: side in pixels of the square that every image is made before all else, and its key says so; the published
            evaluation's setting `image_resolution: high` is 1344. None for the image's own size.
        max_pixels: larger pictures are refused.
    """

    def __init__(self, resize_to_square: int | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.resize_to_square = resize_to_square
        self.max_pixels = max_pixels
        self.sizes: dict[str, tuple[int, int]] = {}
        """(height, width) of each picture as it was found."""
        self._places: dict[str, FilePicture | TarPicture] = {}
        self._keys: dict[FilePicture, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def named(self, images: PictureFiles, path: str, row: str) -> str:
        """The key of a picture by its path. Raises DataError naming `row` where it is missing or no picture."""
        place = FilePicture(images, path)
        if place not in self._keys:
            self._keys[place] = self.add(place, place.read(row), row)
        return self._keys[place]

    def add(self, place: FilePicture | TarPicture, data: bytes, row: str) -> str:
        """The key of a picture whose bytes are known."""
        side = self.resize_to_square
        key = content_key(data) + ("" if side is None else f", {side} pixels square")
        if key not in self._places:
            header = header_of(data, place.path, row, self.max_pixels) if isinstance(place, FilePicture) else read_header(data, row, self.max_pixels)
            self._places[key], self.sizes[key] = place, (header.height, header.width)
        return key

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """The decoded picture, as the model is to see it. Raises DataError where its file has gone or is damaged."""
        place = self._places[key]
        name = place.path if isinstance(place, FilePicture) else str(place.tar)
        image = decode(place.read(name), name, self.max_pixels)
        return image if self.resize_to_square is None else resize_to_square(image, self.resize_to_square)

    def picture(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """The decoded picture as it was found."""
        place = self._places[key]
        return decode(place.read(key), key, self.max_pixels)
