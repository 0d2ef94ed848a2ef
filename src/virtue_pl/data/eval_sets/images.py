"""The images of an evaluation by content: found once, decoded when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.io.image_files import ImageFiles, header_of
from virtue_pl.data.shards.records import content_key
from virtue_pl.preprocessing.images import MAX_PIXELS, decode, read_header, resize_to_square
from virtue_pl.types import DataError


@dataclass(frozen=True)
class FileImage:
    """An image by the path that a table has for it."""

    images: ImageFiles
    path: str

    def read(self, key: str) -> bytes:
        return self.images.read(self.path, key)


@dataclass(frozen=True)
class TarImage:
    """An image's bytes inside a tar."""

    tar: Path
    start: int
    size: int

    def read(self, key: str) -> bytes:
        try:
            with self.tar.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise DataError(key, f"missing image: {self.tar} ({error.strerror})") from error


class ImageLibrary:
    """Where every image is, under the key of its content; the same image in two places is one.

    Args:
        resize_to_square: side in pixels of the square that every image is made before all else, and its key says so;
            the published
            evaluation's setting `image_resolution: high` is 1344. None for the image's own size.
        max_pixels: larger images are refused.
    """

    def __init__(self, resize_to_square: int | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.resize_to_square = resize_to_square
        self.max_pixels = max_pixels
        self.sizes: dict[str, tuple[int, int]] = {}
        """(height, width) of each image as it was found."""
        self._places: dict[str, FileImage | TarImage] = {}
        self._keys: dict[FileImage, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def named(self, images: ImageFiles, path: str, row: str) -> str:
        """The key of an image by its path. Raises DataError naming `row` where it is missing or no image."""
        place = FileImage(images, path)
        if place not in self._keys:
            self._keys[place] = self.add(place, place.read(row), row)
        return self._keys[place]

    def add(self, place: FileImage | TarImage, data: bytes, row: str) -> str:
        """The key of an image whose bytes are known."""
        side = self.resize_to_square
        key = content_key(data) + ("" if side is None else f", {side} pixels square")
        if key not in self._places:
            header = (
                header_of(data, place.path, row, self.max_pixels)
                if isinstance(place, FileImage)
                else read_header(data, row, self.max_pixels)
            )
            self._places[key], self.sizes[key] = place, (header.height, header.width)
        return key

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """The decoded image, as the model is to see it. Raises DataError where its file has gone or is damaged."""
        place = self._places[key]
        name = place.path if isinstance(place, FileImage) else str(place.tar)
        image = decode(place.read(name), name, self.max_pixels)
        return image if self.resize_to_square is None else resize_to_square(image, self.resize_to_square)

    def image(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """The decoded image as it was found."""
        place = self._places[key]
        return decode(place.read(key), key, self.max_pixels)
