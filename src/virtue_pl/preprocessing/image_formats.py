"""Formats and modes of image files: which are read, how each opens, and how its pixels become 8-bit RGB."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from PIL import (  # noqa: F401  # each registers its format, without the thirty others that Image.init() imports
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from virtue_pl.types import DataError, PixelLimit

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Maps each format that shards store to its file extension."""

CONVERTED = {"TIFF": "tif", "BMP": "bmp", "GIF": "gif", "AVIF": "avif", "HEIF": "heic"}
"""Maps each further format that is read to its extension; shards store such an image as PNG.

A file of several images is the first of them. HEIC (`HEIF`, phones' format) needs the extra `heif`.
"""

SIGNATURE_LENGTH = 16
"""The bytes by which Pillow tells a file's format."""

DAMAGE = (
    AssertionError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow's readers raise over a damaged file; all else is a programming error, and passes."""

WIDE_RANGES = {
    "I;16": (65_535,),
    "I;16B": (65_535,),
    "I;16L": (65_535,),
    "I;16N": (65_535,),
    "I": (255, 65_535, 2**31 - 1),
    "F": (1.0, 255.0, 65_535.0),
}
"""For each mode of more than 8 bits, the values that may stand for white, of which the first counts that no value of
the image exceeds; 0 is black.
"""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}

_OTHERS = {
    b"%PDF": "PDF",
    b"<": "a text such as SVG or HTML",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"PK\x03\x04": "a zip",
    b"\x1f\x8b": "gzip",
}
"""First bytes of sound files that neither this module nor Pillow reads, with the format that they tell."""

# Pillow warns of what it reads around, such as a corrupt tag, without a word on which file it is.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_header(data: bytes, key: str) -> Image.Image:
    """Return an image of which only the header is read.

    Raises DataError, which names `key`, for a damaged header, an unsupported format, or HEIC without the extra `heif`.
    Pillow's readers are called without `Image.open`, whose own limit (179 megapixels, for the whole process) would
    count beside `max_pixels`.
    """
    name = find_format(data[:256])
    if name is None:
        raise DataError(key, describe_unreadable(data))
    if name == "HEIF":
        _register_heif(key)
    with name_damage(key):
        image = Image.OPEN[name][0](io.BytesIO(data), "")
    if not (image.width > 0 and image.height > 0):
        raise DataError(key, f"damaged image: {image.width}x{image.height} pixels")
    return image


@contextmanager
def name_damage(key: str) -> Iterator[None]:
    """Raise DataError, which names `key`, for what Pillow raises within over a damaged file.

    Programming errors pass; so do the kinds of RuntimeError that mean one (RecursionError, NotImplementedError).
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        raise DataError(key, f"image too large: {error}") from error
    except (*DAMAGE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        raise DataError(key, f"damaged image: {describe_damage(error)}") from error


def find_format(start: bytes) -> str | None:
    """Return the format that the first bytes of a file tell, of those that are read; None for any other."""
    if start[4:8] == b"ftyp":
        length = min(int.from_bytes(start[:4], "big"), len(start))
        brands = {start[8:12], *(start[start_of_brand : start_of_brand + 4] for start_of_brand in range(16, length, 4))}
        if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS:
            return "HEIF"
    return next((name for name in (*EXTENSIONS, *CONVERTED) if _accepts(name, start)), None)


def describe_unreadable(data: bytes) -> str:
    """Return what is wrong with bytes that are of none of the formats that are read."""
    Image.init()
    start = data[:SIGNATURE_LENGTH]
    found = next((name for begin, name in _OTHERS.items() if data[:64].lstrip().startswith(begin)), None)
    found = found or next((name for name in Image.OPEN if _accepts(name, start)), None)
    if found is None:
        return f"damaged image: {len(data)} bytes that are no {format_names()}"
    return f"unsupported image format: {found}, expected {format_names()}"


def format_names() -> str:
    """Return the names of all formats that are read."""
    return f"{', '.join(EXTENSIONS)}, {', '.join(CONVERTED)}".replace("HEIF", "HEIC")


def describe_damage(error: BaseException) -> str:
    """Return an error of Pillow's in one line, with its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def is_turned(image: Image.Image, orientation: int) -> bool:
    """Return whether an image of this EXIF orientation has its sides exchanged when it is upright.

    Pillow gives a TIFF's size as it is upright.
    """
    return orientation in (5, 6, 7, 8) and image.format != "TIFF"


def allocate_tiff(image: Image.Image) -> None:
    """Give a TIFF that is about to be decoded its memory, which Pillow would compare with its own limit first."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile and image._im is None:
        image.im = Image.core.new(image.mode, image._tile_size)


def to_rgb(image: Image.Image, key: str) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image's pixels as 8-bit RGB; transparency is dropped, and more than 8 bits are scaled to 256 levels.

    White is `WIDE_RANGES`' value of the image's mode. Raises DataError, naming `key`, for values outside any range and
    for a mode without a way to RGB.
    """
    if image.mode == "RGB":
        return np.array(image)
    if image.mode in WIDE_RANGES:
        return np.repeat(scale_levels(np.asarray(image), image.mode, key)[..., None], 3, axis=2)
    if image.mode == "LAB":
        raise DataError(key, "unsupported image format: colours in LAB, expected RGB, CMYK, grey or a palette")
    image.info.pop("transparency", None)  # it is dropped, and Pillow would warn of one that it cannot keep
    return np.array(image.convert("RGB"))


def scale_levels(values: Shaped[np.ndarray, "height width"], mode: str, key: str) -> UInt8[np.ndarray, "height width"]:
    """Return grey values of more than 8 bits as 256 levels, by the range of their mode (`WIDE_RANGES`)."""
    low, high = values.min(), values.max()
    white = next((top for top in WIDE_RANGES[mode] if high <= top), None)
    if white is None or not low >= 0:  # also where they are NaN
        ranges = " or ".join(f"0 to {top:,}" for top in WIDE_RANGES[mode])
        raise DataError(key, f"unsupported image format: mode {mode} with values of {low} to {high}, expected {ranges}")
    if mode != "F":
        whole: Integer[np.ndarray, "height width"] = values.astype(np.uint32 if white <= 65_535 else np.int64)
        return ((whole * 255 + white // 2) // white).astype(np.uint8)
    return np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def _accepts(name: str, start: bytes) -> bool:
    """Return whether a file that begins with these bytes is of the format `name`, as Pillow tells."""
    _, accepts = Image.OPEN.get(name, (None, None))
    try:
        return accepts is not None and accepts(start[:SIGNATURE_LENGTH]) is True
    except DAMAGE:
        return False


def _register_heif(key: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            key, "unsupported image format: HEIC needs the extra heif: pip install 'virtue-pl[heif]', or convert it"
        ) from error
    register: Any = pillow_heif.register_heif_opener
    if "HEIF" not in Image.OPEN:
        register()


def open_image(data: bytes, key: str, max_pixels: int) -> Image.Image:
    """Return an image of which only the header is read. Raises DataError for one of more than `max_pixels`."""
    image = open_header(data, key)
    if image.width * image.height > max_pixels:
        option = max_pixels.option if isinstance(max_pixels, PixelLimit) else "max_pixels"
        raise DataError(
            key, f"image too large: {image.width}x{image.height} pixels, more than {option} = {int(max_pixels)}"
        )
    return image


def read_pixels(image: Image.Image, key: str, inplace: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image's pixels, upright; `inplace` turns the image itself.

    Raises DataError naming `key` for damage.
    """
    with name_damage(key):
        allocate_tiff(image)
        turned: Any = ImageOps.exif_transpose(image, in_place=inplace)  # type: ignore[call-overload]
        return to_rgb(turned or image, key)
