"""Images that are decoded when their batch comes, and not before: a list of paths takes the memory of one batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile
from torch import Tensor

from virtue_pl.preprocessing.image_formats import DAMAGE
from virtue_pl.preprocessing.images import MAX_PIXELS, pixel_key, read_bytes, read_header, to_image
from virtue_pl.types import DataError, EmbeddingInput

MAX_THREADS = 4
"""Limits the threads that decode, each of which holds one image or file while the size and key of all are found."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """An image as it was given: a path, compressed bytes, or pixels in any form that `to_image` takes.

    Example:
        >>> ImageSource(torch.zeros(3, 8, 8, dtype=torch.uint8), "row 0").decode().shape
        torch.Size([3, 8, 8])
    """

    given: Any
    name: str
    """The row that it is first used in, for messages."""
    max_pixels: int = MAX_PIXELS
    """The largest image that is decoded."""

    def decode(self) -> UInt8[Tensor, "3 height width"]:
        """Return the pixels. Raises DataError, which names the row and the path, for what is no image."""
        return to_image(reopen(self.given), self.name, self.max_pixels)

    def identify_file(self) -> Identity | None:
        """Return a key of the compressed bytes, and the shape that the header tells; None for what is in no file.

        Raises DataError, which names the row and the path, for what is no image, or too large.
        """
        if not isinstance(self.given, str | Path | bytes):
            return None
        name = self.name if isinstance(self.given, bytes) else f"{self.name} ({self.given})"
        data = self.given if isinstance(self.given, bytes) else read_bytes(self.given, self.name)
        header = read_header(data, name, self.max_pixels)
        return Identity(f"file-{hashlib.sha256(data).hexdigest()}", placeholder((3, header.height, header.width)))


def reopen(image: Any) -> Any:
    """Return another view of a PIL image that is still in its file, so that the given one never holds its pixels.

    Anything else is returned as it is, and so is an image that was changed since it was opened.
    """
    if not (isinstance(image, ImageFile.ImageFile) and image.tile and os.path.isfile(image.filename)):
        return image
    try:
        again = Image.open(image.filename)
        same = (again.size, again.mode, again.tell()) == (image.size, image.mode, image.tell())
        return again if same and dict(again.getexif()) == dict(image.getexif()) else image
    except DAMAGE:  # decoding the given image tells what is wrong
        return image


class Identity(NamedTuple):
    """The key of an image's pixels, or of its file, and a tensor of its shape without any data.

    Example:
        >>> Identity("0a1b", torch.empty(3, 480, 640, dtype=torch.uint8, device="meta")).placeholder.shape
        torch.Size([3, 480, 640])
    """

    key: str
    placeholder: Tensor


def placeholder(shape: Sequence[int]) -> Tensor:
    """Return a tensor of an image's shape without any data."""
    return torch.empty(tuple(shape), dtype=torch.uint8, device="meta")


class DecodedImages:
    """The pixels of one batch after the other; no more images than a batch has are decoded at a time.

    Where all images are no more than `capacity`, they are decoded at first, and stay. Else only the headers of files
    are read at first, for sizes, by which rows are sorted, and each is decoded when its batch comes: files with the
    same bytes are one image. An image that cannot be opened is found then, before anything is embedded, and one that is
    cut off or damaged behind its header when its batch comes. Images in no file are recognised by pixels.

    Args:
        sources: the images.
        capacity: the number of images whose pixels may stay, the rows of a batch.

    Example:
        >>> source = ImageSource(torch.zeros(3, 8, 8, dtype=torch.uint8), "row 0")
        >>> images = DecodedImages([source], capacity=4)
        >>> identity = images.identities[source]
        >>> item = EmbeddingInput("a cat", (identity.placeholder,), image_keys=(identity.key,))
        >>> [image.device.type for image in images.load([item])[0].images]
        ['cpu']
    """

    def __init__(self, sources: Sequence[ImageSource], capacity: int) -> None:
        self.threads = min(MAX_THREADS, capacity, os.cpu_count() or 1)
        self._keeps_all = len(sources) <= capacity
        self._pixels: dict[str, KeyedPixels] = {}
        self._sources: dict[str, ImageSource] = {}
        self.identities: dict[ImageSource, Identity] = {}
        with ThreadPoolExecutor(self.threads) as pool:
            for source, identity in zip(sources, pool.map(self._identify, sources), strict=True):
                self.identities[source] = identity
                self._sources.setdefault(identity.key, source)

    def _identify(self, source: ImageSource) -> Identity:
        identity = None if self._keeps_all else source.identify_file()
        if identity is not None:
            return identity
        found = keyed_pixels(source)
        if self._keeps_all:
            self._pixels.setdefault(found.key, found)
        return Identity(found.key, placeholder(found.pixels.shape))

    def load(self, items: Sequence[EmbeddingInput]) -> list[EmbeddingInput]:
        """Return inputs with their pixels instead of placeholders, and the pixels' keys; those of before are given up.

        Raises DataError for a damaged image, and where a file has changed since its key was found.
        """
        needed = {key: image.shape for item in items for key, image in zip(item.image_keys, item.images, strict=True)}
        if not self._keeps_all:
            self._pixels = {key: pixels for key, pixels in self._pixels.items() if key in needed}
        missing = [key for key in needed if key not in self._pixels]
        with ThreadPoolExecutor(self.threads) as pool:
            sources = [self._sources[key] for key in missing]
            self._pixels |= zip(missing, pool.map(keyed_pixels, sources), strict=True)
        for key, shape in needed.items():
            if self._pixels[key].pixels.shape != shape:
                source = self._sources[key]
                raise DataError(source.name, f"the image {source.given} changed while it was read")
        found = [[self._pixels[key] for key in item.image_keys] for item in items]
        return [
            replace(item, images=tuple(one.pixels for one in images), image_keys=tuple(one.key for one in images))
            for item, images in zip(items, found, strict=True)
        ]


class KeyedPixels(NamedTuple):
    """The pixels of an image and their content key.

    Example:
        >>> keyed_pixels(ImageSource(torch.zeros(3, 8, 8, dtype=torch.uint8), "row 0")).pixels.shape
        torch.Size([3, 8, 8])
    """

    key: str
    pixels: Tensor


def keyed_pixels(source: ImageSource) -> KeyedPixels:
    """Return an image's pixels with their key. Raises DataError as `ImageSource.decode` does."""
    pixels = source.decode()
    return KeyedPixels(pixel_key(pixels), pixels)
