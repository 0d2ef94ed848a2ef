"""Tar records to images and rows: nothing but images and JSON is ever decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from virtue_pl.preprocessing.image_formats import EXTENSIONS
from virtue_pl.preprocessing.images import decode, read_header, resize_bicubic
from virtue_pl.types import NO_FEATURES, DataError, ImageFeatures, Region, VirtueError, VisualPrompt

IMAGE_EXTENSIONS = (*EXTENSIONS.values(), "jpeg")


MAX_COORDINATE = 2**31
"""Whole numbers beyond are no coordinates."""

MAX_DIGITS = 18
"""Digits of a record's number."""

_DECODED: WeakValueDictionary[tuple[str, int], Tensor] = WeakValueDictionary()
"""Decoded images that are in use, by content key and `max_pixels`: a candidate of many rows is in memory once."""


@dataclass(frozen=True, eq=False)
class RecordImage:
    """An image of a record, decoded when `image` is first read: of many candidates, only those that rows use.

    Example:
        >>> image = RecordImage(jpeg, content_key(jpeg), "SCAR_mini/0", max_pixels=10_000)  # doctest: +SKIP
        >>> image.image.shape  # (3, height, width)  # doctest: +SKIP
        torch.Size([3, 48, 64])
    """

    data: bytes
    """The compressed image."""
    content_key: str
    """The same for the same pixels."""
    record: str
    """The record's key, for errors."""
    max_pixels: int
    features: ImageFeatures = NO_FEATURES
    """Stored features of the image."""
    resize_to_square: int | None = None
    """See `Record`."""

    @cached_property
    def image(self) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image. Raises DataError if it cannot be decoded, or has more than `max_pixels`."""
        key = (self.content_key, self.max_pixels)
        decoded = _DECODED.get(key)
        if decoded is None:
            decoded = decode(self.data, self.record, self.max_pixels)
            size = self.resize_to_square
            _DECODED[key] = decoded = decoded if size is None else resize_bicubic(decoded, (size, size))
        return decoded

    @cached_property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the image as it is stored, in whose pixels its boxes and masks are.

        Raises DataError as `image` does.
        """
        if self.resize_to_square is None:
            return self.image.shape[1], self.image.shape[2]
        header = read_header(self.data, self.record, self.max_pixels)
        return header.height, header.width


@dataclass(frozen=True)
class Row:
    """One annotation of a record's images, as the shard's JSON has it.

    Example:
        >>> Row("SCAR_mini/7", "scar_mini", {"row": 7, "target": "a cat to the left of a dog"}).text("target")
        'a cat to the left of a dog'
    """

    key: str
    """Folder and row of the source."""
    task: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return a field. Raises DataError where it is missing."""
        if name not in self.fields:
            raise DataError(self.key, f"field {name!r} is missing, found {', '.join(self.fields)}")
        return self.fields[name]

    @property
    def published_box(self) -> Any:
        """The box, xyxy in pixels, as the source's row has it, before what is outside of the image was cut off."""
        return self.fields["published_box"] if "published_box" in self.fields else self["box"]

    def text(self, name: str) -> str:
        """Return a field that is a text. Raises DataError for anything else, and for an empty text."""
        value = self[name]
        if not isinstance(value, str) or not value:
            raise DataError(self.key, f"field {name!r} is {value!r}, expected a text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a field that is a list of texts. Raises DataError for anything else."""
        value = self[name]
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise DataError(self.key, f"field {name!r} is {value!r}, expected a list of texts")
        return value

    def items(self, name: str) -> list[Any]:
        """Return a field that is a list. Raises DataError for anything else."""
        value = self[name]
        if not isinstance(value, list):
            raise DataError(self.key, f"field {name!r} is {value!r}, expected a list")
        return value


def no_features(key: str) -> ImageFeatures:
    """Return no features, whatever the image."""
    return NO_FEATURES


@dataclass(frozen=True)
class Record:
    """The rows of one tar entry, and their images, still compressed: mostly one, but several or none are possible.

    Example:
        >>> Record("SCAR_mini/000000000 (a.jpg)", 0, data=(b"", b""), rows=()).images(max_pixels=10_000)[1].record
        'SCAR_mini/000000000 (a.jpg)'
    """

    key: str
    index: int
    """The record's index in the folder."""
    data: tuple[bytes, ...]
    """The compressed images, in order."""
    rows: tuple[Row, ...]
    stored: Callable[[str], ImageFeatures] = no_features
    """Returns the stored features of an image, by its content key."""
    resize_to_square: int | None = None
    """Images are stretched to a square of so many pixels a side; None leaves them as they are."""

    def images(self, max_pixels: int) -> tuple[RecordImage, ...]:
        """Return the images, none of them decoded yet."""
        size = self.resize_to_square
        change = "" if size is None else f", squash {size}"  # part of keys, which stay as they were
        pairs = [(data, content_key(data)) for data in self.data]
        return tuple(
            RecordImage(data, key + change, self.key, max_pixels, self.stored(key), size) for data, key in pairs
        )


def content_key(data: bytes) -> str:
    """Return a key for an image: the same for the same bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def image_member(number: int, extension: str) -> str:
    """Return what follows a record's key in the name of its image `number`: `jpg`, `1.jpg`, `2.jpg`, ..."""
    return f"{number}.{extension}" if number else extension


def read_record(members: Mapping[str, Any], name: str, task: str) -> Record:
    """Return the record of one tar entry of the folder `name`.

    Its json gives the number of its images, if not one. Raises DataError, which names the record, for a damaged entry.
    """
    key = f"{name}/{members['__key__']}"
    if not (members["__key__"].isdecimal() and len(members["__key__"]) <= MAX_DIGITS):
        raise DataError(key[:200], f"record {members['__key__'][:40]!r}, expected a number")
    if "json" not in members:
        raise DataError(key, f"found {found_members(members)}, expected one json")
    try:
        content = json.loads(members["json"])
        image, count = content["image"], int(content.get("pictures", 1))
        rows = tuple(Row(f"{name}/{row_number(row)}", task, row) for row in content["rows"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # what is no mapping has no `get`, and JSON that is nested too deeply ends in a RecursionError
        raise DataError(key, f"its json is damaged or lacks a field: {error!r}") from error
    return Record(f"{key} ({image})", int(members["__key__"]), read_images(members, count, key), rows)


def row_number(row: Any) -> int:
    """Return a stored row's number in its source. Raises TypeError for what is no row."""
    if not isinstance(row, dict) or type(row["row"]) is not int:
        raise TypeError(f"row {str(row)[:80]}, expected fields with a whole number `row`")
    return row["row"]


def read_images(members: Mapping[str, Any], count: int, key: str) -> tuple[bytes, ...]:
    """Return the bytes of the record's `count` images, in order.

    Raises DataError where one is missing or occurs twice.
    """
    if not 0 <= count <= len(members):
        raise DataError(key, f"its json says that it has {count} images, expected one member of the tar for each")
    names = [
        [name for extension in IMAGE_EXTENSIONS if (name := image_member(number, extension)) in members]
        for number in range(count)
    ]
    if any(len(found) != 1 for found in names):
        raise DataError(
            key,
            f"found {found_members(members)}, expected {count} image{'s' * (count != 1)}"
            f" ({', '.join(IMAGE_EXTENSIONS)})",
        )
    return tuple(members[name] for (name,) in names)


def found_members(members: Mapping[str, Any]) -> str:
    """Return the names of a tar entry's members, for errors."""
    return ", ".join(name for name in members if not name.startswith("__"))


def read_region(row: Row, size: tuple[int, int]) -> Region:
    """Return the row's "box" (xyxy in pixels) and "mask" (run lengths or null) as a region.

    `size` = (height, width) of the image. Raises DataError for a box or mask that is impossible.
    """
    box = row["box"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_stored_number, box))):
        raise DataError(row.key, f"box {box!r}, expected four numbers [x1, y1, x2, y2] in pixels")
    mask = None if row["mask"] is None else read_mask(row, size)
    try:
        prompt = VisualPrompt.from_pixels([box], masks=None if mask is None else mask[None], size=size)
    except VirtueError as error:
        raise DataError(row.key, str(error)) from error
    return Region(prompt.boxes[0], mask)


def is_stored_number(value: Any) -> bool:
    """Return whether a value of JSON is a number that a float can hold; NaN and Infinity lie outside any image."""
    return type(value) is float or (type(value) is int and abs(value) <= MAX_COORDINATE)


def read_mask(row: Row, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Return the row's mask over the whole image of `size` = (height, width).

    It is stored as COCO's uncompressed run lengths, down the columns: outside, inside, outside, ... Raises DataError
    for one of another size.
    """
    encoded, (height, width) = row["mask"], size
    if (
        not isinstance(encoded, dict)
        or not isinstance(encoded.get("counts"), list)
        or encoded.get("size") != [height, width]
    ):
        found = encoded.get("size") if isinstance(encoded, dict) else encoded
        raise DataError(
            row.key, f"mask of size {found}, expected run lengths of the image's size {list(size)} (height, width)"
        )
    counts = encoded["counts"]
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        raise DataError(row.key, f"damaged mask: its run lengths do not add up to {height} x {width} pixels")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height)
    return torch.from_numpy(np.ascontiguousarray(inside.T))
