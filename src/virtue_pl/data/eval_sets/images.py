"""The images of an evaluation by content: found once, decoded when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.io.image_files import ImageFiles, read_named_header
from virtue_pl.data.shards.records import content_key
from virtue_pl.preprocessing.images import MAX_PIXELS, decode, read_header, resize_to_square
from virtue_pl.types import DataError


@dataclass(frozen=True)
class FileImage:
    """An image by the path that a table has for it.

    Example:
        >>> FileImage(ImageFiles((Path("images"),)), "a.jpg").path
        'a.jpg'
    """

    images: ImageFiles
    path: str

    def read(self, key: str) -> bytes:
        """Return the compressed bytes. Raises DataError where the file is missing."""
        return self.images.read(self.path, key)


@dataclass(frozen=True)
class TarImage:
    """An image inside a tar, by the range of its bytes.

    Example:
        >>> TarImage(Path("shards/SCAR_mini/shard-000000.tar"), start=512, size=4_096).size
        4096
    """

    tar: Path
    start: int
    size: int

    def read(self, key: str) -> bytes:
        """Return the compressed bytes. Raises DataError where the tar is missing."""
        try:
            with self.tar.open("rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise DataError(key, f"missing image: {self.tar} ({error.strerror})") from error


class ImageLibrary:
    """The location of every image, by a key of its content; the same image in two files is one.

    Args:
        resize_to_square: size in pixels of the square to which every image is resized before all else; it is part of
            the key. The published evaluation's setting `image_resolution: high` is 1344. None for the image's own size.
        max_pixels: larger images are refused.

    Example:
        >>> library = ImageLibrary(resize_to_square=1344)
        >>> key = library.add_path(ImageFiles((Path("images"),)), "a.jpg", row="RefCOCO+ row 0")  # doctest: +SKIP
        >>> library.pixels(key).shape  # doctest: +SKIP
        torch.Size([3, 1344, 1344])
    """

    def __init__(self, resize_to_square: int | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.resize_to_square = resize_to_square
        self.max_pixels = max_pixels
        self.sizes: dict[str, tuple[int, int]] = {}
        """(height, width) in pixels of each image at its own size, by its key."""
        self._locations: dict[str, FileImage | TarImage] = {}
        self._keys: dict[FileImage, str] = {}

    def __len__(self) -> int:
        return len(self._locations)

    def add_path(self, images: ImageFiles, path: str, row: str) -> str:
        """Add an image by its path; return its key.

        Raises DataError, which names `row`, where it is missing or no image.
        """
        location = FileImage(images, path)
        if location not in self._keys:
            self._keys[location] = self.add(location, location.read(row), row)
        return self._keys[location]

    def add(self, location: FileImage | TarImage, data: bytes, row: str) -> str:
        """Add an image by its location and bytes; return its key."""
        square_size = self.resize_to_square
        key = content_key(data) + ("" if square_size is None else f", {square_size} pixels square")
        if key not in self._locations:
            header = (
                read_named_header(data, location.path, row, self.max_pixels)
                if isinstance(location, FileImage)
                else read_header(data, row, self.max_pixels)
            )
            self._locations[key], self.sizes[key] = location, (header.height, header.width)
        return key

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image, resized for the model. Raises DataError where its file is missing or damaged."""
        location = self._locations[key]
        name = location.path if isinstance(location, FileImage) else str(location.tar)
        image = decode(self._read(key, name), name, self.max_pixels)
        return image if self.resize_to_square is None else resize_to_square(image, self.resize_to_square)

    def image(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image at its own size."""
        return decode(self._read(key, key), key, self.max_pixels)

    def _read(self, key: str, name: str) -> bytes:
        """Return the compressed bytes. Raises DataError where they are not those that had the key."""
        data = self._locations[key].read(name)
        if content_key(data) != key.partition(",")[0]:
            raise DataError(name, "another image: its file has changed since its rows were read, evaluate again")
        return data
