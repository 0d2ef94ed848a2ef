"""The limit of an image's pixels, which knows the option that sets it."""

from __future__ import annotations

MAX_PIXELS = 25_000_000
"""The default limit: larger images are refused from their header alone, since a small file can claim any size."""


class PixelLimit(int):
    """A limit of an image's pixels that knows the option which sets it, for errors.

    Example:
        >>> limit = PixelLimit(50_000_000, "--max-pixels")
        >>> limit, limit.option
        (50000000, '--max-pixels')
    """

    option: str

    def __new__(cls, pixels: int, option: str = "max_pixels") -> PixelLimit:
        limit = super().__new__(cls, pixels)
        limit.option = pixels.option if isinstance(pixels, PixelLimit) else option
        return limit
