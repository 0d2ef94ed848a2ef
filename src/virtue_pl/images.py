"""Compressed pictures to tensors, safely: the header is checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from virtue_pl.types import DataError, VirtueError

MAX_PIXELS = 25_000_000
"""Larger pictures are refused from their header alone; a small file can claim any size."""

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""The formats that are read, and the file extension of each."""

_DAMAGE = (OSError, EOFError, ValueError, SyntaxError, TypeError, IndexError, OverflowError, struct.error, zlib.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class PictureHeader(NamedTuple):
    """What a picture says of itself before it is decoded; height and width are those of the upright picture."""

    extension: str
    height: int
    width: int


def read_header(data: bytes, key: str, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """Format and upright size, without decoding. Raises DataError for another format, damage, or more than `max_pixels`."""
    with _open(data, key, max_pixels) as picture:
        try:
            sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        except _DAMAGE as error:
            raise DataError(key, f"damaged picture: {error}") from error
        width, height = reversed(picture.size) if sideways else picture.size
        return PictureHeader(EXTENSIONS[str(picture.format)], height, width)


def decode(data: bytes, key: str, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """The picture as RGB, turned upright by its EXIF orientation. Raises DataError naming `key`; transparency is dropped."""
    with _open(data, key, max_pixels) as picture:
        try:
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        except _DAMAGE as error:
            raise DataError(key, f"damaged picture: {error}") from error
    return torch.from_numpy(np.ascontiguousarray(pixels))


def smart_size(size: tuple[int, int], min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """The size (height, width) nearest to `size` in multiples of `factor`, its area within the bounds, its ratio as near as can be (Qwen2-VL).

    Raises VirtueError for a picture more than 200 times as long as wide.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        return smart_resize(*size, factor, min_pixels, max_pixels)
    except ValueError as error:
        raise VirtueError(f"a picture of {size[1]}x{size[0]} pixels, expected sides of a ratio of at most 200: crop it, or leave it out") from error


def resize_bicubic(image: UInt8[Tensor, "3 height width"], size: tuple[int, int]) -> UInt8[Tensor, "3 new_height new_width"]:
    """The picture at `size` = (height, width), by Pillow's filter: torch's own differs by up to two levels.

    Levels are rounded between the two passes, so that their order shows: across goes first, but where a picture grows across and
    shrinks down, down goes first (as in the pictures of the published evaluation).
    """
    if tuple(image.shape[1:]) == size:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if size[0] < picture.height and size[1] > picture.width:
        picture = picture.resize((picture.width, size[0]), Image.Resampling.BICUBIC)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)))


def squash(image: UInt8[Tensor, "3 height width"], side: int) -> UInt8[Tensor, "3 side side"]:
    """The picture as a square of `side` pixels, as Pillow makes it in one call (across first)."""
    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy())


def _open(data: bytes, key: str, max_pixels: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=tuple(EXTENSIONS))
    except _BOMB as error:
        raise DataError(key, f"picture too large: more than max_pixels = {max_pixels}") from error
    except _DAMAGE as error:
        raise DataError(key, f"damaged picture: {len(data)} bytes that are no {', '.join(EXTENSIONS)}") from error
    if picture.width * picture.height > max_pixels:
        raise DataError(key, f"picture too large: {picture.width}x{picture.height} pixels, more than max_pixels = {max_pixels}")
    return picture
