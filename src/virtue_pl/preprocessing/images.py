"""Images to tensors; compressed ones safely: the header is checked before anything is decoded."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from virtue_pl.preprocessing.image_formats import (
    CONVERTED,
    EXTENSIONS,
    format_names,
    is_turned,
    name_damage,
    open_image,
    read_pixels,
)
from virtue_pl.types import MAX_PIXELS, DataError, VirtueError

TALL = 100
"""Ratio of height to width beyond which Pillow resizes an image down first."""


class ImageHeader(NamedTuple):
    """An image's format and size, read before it is decoded; height and width are those of the upright image.

    Example:
        >>> ImageHeader("jpg", height=480, width=640).extension
        'jpg'
    """

    extension: str
    height: int
    width: int


def read_header(data: bytes, key: str, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Return an image's format and upright size without decoding it.

    Raises DataError naming `key` for another format, damage, or more than `max_pixels`.
    """
    with open_image(data, key, max_pixels) as image:
        with name_damage(key):
            turned = is_turned(image, image.getexif().get(ExifTags.Base.Orientation, 1))
        width, height = reversed(image.size) if turned else image.size
        # several images in one JPEG, as phones write them, are of the format MPO
        return ImageHeader((EXTENSIONS | CONVERTED).get(str(image.format), "jpg"), height, width)


def decode(data: bytes, key: str, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """Return the image as RGB, turned upright by its EXIF orientation; transparency is dropped.

    In memory a pixel's colours stay side by side, as they are decoded: torchvision resizes that layout more than twice
    as fast. Raises DataError naming `key` for another format, damage, or more than `max_pixels`.
    """
    with open_image(data, key, max_pixels) as image:
        pixels = read_pixels(image, key)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def convert_to_png(data: bytes, key: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return an image of any format that is read as a PNG, upright and in RGB. Raises DataError as `decode` does."""
    buffer = io.BytesIO()
    Image.fromarray(decode(data, key, max_pixels).permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def to_image(image: Any, name: str, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """Return an image in any of its forms as RGB; transparency is dropped.

    Args:
        image: a path, compressed bytes, a PIL image, a uint8 array [height, width(, 3 or 4)] or a uint8 tensor
            [3, height, width].
        name: for messages, which also name the path of an image that has one.
        max_pixels: more than these are not decoded from a path or bytes; pixels in memory are taken as they are.

    Raises:
        VirtueError: (DataError) the value is no image, the file is damaged, or the image is too large.
    """
    if isinstance(image, str | Path):
        return decode(read_bytes(image, name), f"{name} ({image})", max_pixels)
    if isinstance(image, bytes):
        return decode(image, name, max_pixels)
    if isinstance(image, Image.Image):
        image = read_pixels(image, name, inplace=False)
    pixels = torch.as_tensor(image) if isinstance(image, Tensor) else _channels_first(image)
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.numel():
        raise DataError(
            name,
            f"an image is {describe_value(image)}, expected a path, a PIL image, uint8 [height, width, 3] or a uint8"
            " tensor [3, height, width]",
        )
    return pixels.cpu().contiguous()


def read_bytes(path: str | Path, name: str) -> bytes:
    """Return the bytes of an image's file. Raises DataError, which names `name` and the path, where it has none."""
    if not Path(path).is_file():
        raise DataError(name, f"there is no image {path}, expected the path of a {format_names()} file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(name, f"the image {path} cannot be read ({error.strerror})") from error


def _channels_first(array: Any) -> Tensor | None:
    """Return an array's levels as three channels first; None for an array that is no image."""
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
    ):
        return None
    levels = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array[..., :3]
    return torch.from_numpy(levels.transpose(2, 0, 1).copy())


def describe_value(value: Any) -> str:
    """Return a value's dtype and shape in words, or its type where it has none."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray | Tensor) else type(value).__name__


def pixel_key(image: UInt8[Tensor, "3 height width"]) -> str:
    """Return an image's content key: a hash of its size and pixels."""
    return hashlib.blake2b(
        image.numpy().tobytes(), digest_size=16, person=f"{image.shape[1]}x{image.shape[2]}".encode()[:16]
    ).hexdigest()


def smart_size(size: tuple[int, int], min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """Return the size (height, width) nearest to `size` in multiples of `factor`, with its area within the bounds.

    The ratio is kept as near as can be (Qwen2-VL). Raises VirtueError for an image more than 200 times as long as wide.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        return smart_resize(*size, factor, min_pixels, max_pixels)
    except ValueError as error:
        raise VirtueError(
            f"an image of {size[1]}x{size[0]} pixels, expected sides of a ratio of at most 200: crop it, or leave"
            " it out"
        ) from error


def resize_bicubic(
    image: UInt8[Tensor, "3 height width"], size: tuple[int, int]
) -> UInt8[Tensor, "3 new_height new_width"]:
    """Return the image at `size` = (height, width), by Pillow's filter: torch's own differs by up to two levels.

    Levels are rounded between the two passes, so that their order matters. Across goes first, as in every Pillow up to
    12, with which the published weights were trained, but in an image more than `TALL` times as high as wide that
    shrinks down. Pillow 13 has another rule, and so each pass is a call.
    """
    if tuple(image.shape[1:]) == size:
        return image
    pillow_image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    (height, width), (own_width, own_height) = size, pillow_image.size
    down_first = own_height > TALL * own_width and height < own_height
    for step in ((own_width, height) if down_first else (width, own_height), (width, height)):
        if pillow_image.size != step:
            pillow_image = pillow_image.resize(step, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(pillow_image)).permute(2, 0, 1)


def resize_to_square(image: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
    """Return the image stretched to a square of `size` pixels, across first (`resize_bicubic`)."""
    return resize_bicubic(image, (size, size)).contiguous()
