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

from virtue_pl.preprocessing.images import EXTENSIONS, decode, read_header, resize_bicubic
from virtue_pl.types import NO_FEATURES, DataError, ImageFeatures, Region, VirtueError, VisualPrompt

IMAGE_EXTENSIONS = (*EXTENSIONS.values(), "jpeg")


_DECODED: WeakValueDictionary[tuple[str, int], Tensor] = WeakValueDictionary()
"""ImageBatch that something still holds, by content key and `max_pixels`: a candidate of many rows is in memory once.
"""


@dataclass(frozen=True, eq=False)
class RecordImage:
    """An image that is decoded when `image` is first asked for: of many candidates, only those that a row shows are.

    `content_key` is the same for the same pixels. `features` are what is stored of it. The other fields are `Record`'s.
    """

    data: bytes
    content_key: str
    record: str
    max_pixels: int
    features: ImageFeatures = NO_FEATURES
    resize_to_square: int | None = None

    @cached_property
    def image(self) -> UInt8[Tensor, "3 height width"]:
        """Raises DataError if the image cannot be decoded, or has more than `max_pixels`."""
        place = (self.content_key, self.max_pixels)
        known = _DECODED.get(place)
        if known is None:
            known = decode(self.data, self.record, self.max_pixels)
            side = self.resize_to_square
            _DECODED[place] = known = known if side is None else resize_bicubic(known, (side, side))
        return known

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image as it is stored, in whose pixels its boxes and masks are. Raises DataError as
        `image` does.
        """
        if self.resize_to_square is None:
            return self.image.shape[1], self.image.shape[2]
        header = read_header(self.data, self.record, self.max_pixels)
        return header.height, header.width


@dataclass(frozen=True)
class Row:
    """One annotation of a record's images, as the shard's JSON has it. `key` finds it again: folder and row of the
    source.
    """

    key: str
    task: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise DataError(self.key, f"field {name!r} is missing, found {', '.join(self.fields)}")
        return self.fields[name]

    def text(self, name: str) -> str:
        value = self[name]
        if not isinstance(value, str) or not value:
            raise DataError(self.key, f"field {name!r} is {value!r}, expected a text")
        return value

    def texts(self, name: str) -> list[str]:
        value = self[name]
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise DataError(self.key, f"field {name!r} is {value!r}, expected a list of texts")
        return value


def nothing_stored(key: str) -> ImageFeatures:
    """Of any image."""
    return NO_FEATURES


@dataclass(frozen=True)
class Record:
    """Rows and the images that they speak of, still compressed: mostly one, but several or none are as good.

    `index` is the record's place in the folder. `stored` gives what is stored of an image, by its content key.
    `resize_to_square`: images are stretched to a square of so many pixels a side; None leaves them as they are.
    """

    key: str
    index: int
    data: tuple[bytes, ...]
    rows: tuple[Row, ...]
    stored: Callable[[str], ImageFeatures] = nothing_stored
    resize_to_square: int | None = None

    def images(self, max_pixels: int) -> tuple[RecordImage, ...]:
        """None of them decoded yet."""
        side = self.resize_to_square
        change = "" if side is None else f", squash {side}"  # part of keys, which stay as they were
        pairs = [(data, content_key(data)) for data in self.data]
        return tuple(
            RecordImage(data, key + change, self.key, max_pixels, self.stored(key), side) for data, key in pairs
        )


def content_key(data: bytes) -> str:
    """What names an image: the same for the same bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def image_member(number: int, extension: str) -> str:
    """What stands behind a record's key in the name of its image `number`: `jpg`, `1.jpg`, `2.jpg`, ..."""
    return f"{number}.{extension}" if number else extension


def read_record(members: Mapping[str, Any], name: str, task: str) -> Record:
    """The record of one tar entry of the folder `name`. Raises DataError naming it. Its json says how many images it
    has, if not one.
    """
    key = f"{name}/{members['__key__']}"
    if "json" not in members:
        raise DataError(key, f"found {found_members(members)}, expected one json")
    try:
        content = json.loads(members["json"])
        image, count = content["image"], int(content.get("pictures", 1))
        rows = tuple(Row(f"{name}/{row['row']}", task, row) for row in content["rows"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(key, f"its json is damaged or lacks a field: {error!r}") from error
    return Record(f"{key} ({image})", int(members["__key__"]), read_images(members, count, key), rows)


def read_images(members: Mapping[str, Any], count: int, key: str) -> tuple[bytes, ...]:
    """The bytes of the record's `count` images, in order. Raises DataError where one is not there or there twice."""
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
    return ", ".join(name for name in members if not name.startswith("__"))


def read_region(row: Row, size: tuple[int, int]) -> Region:
    """The row's "box" (xyxy pixels) and "mask" (run lengths or null). Raises DataError for one that is none."""
    box = row["box"]
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)):
        raise DataError(row.key, f"box {box!r}, expected four numbers [x1, y1, x2, y2] in pixels")
    mask = None if row["mask"] is None else read_mask(row, size)
    try:
        prompt = VisualPrompt.from_pixels([box], masks=None if mask is None else mask[None], size=size)
    except VirtueError as error:
        raise DataError(row.key, str(error)) from error
    return Region(prompt.boxes[0], mask)


def read_mask(row: Row, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The row's mask over the whole image of `size` = (height, width).

    It is stored as COCO's uncompressed run lengths, down the columns: outside, inside, outside, ...
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
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != height * width:
        raise DataError(row.key, f"damaged mask: its run lengths do not add up to {height} x {width} pixels")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height)
    return torch.from_numpy(np.ascontiguousarray(inside.T))
