"""Checks of compressed images, by one process or by several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.doctor.image_hashes import difference_hash
from virtue_pl.data.io.archives import APPLE_DOUBLE
from virtue_pl.data.io.worker_pools import worker_pool
from virtue_pl.preprocessing.images import decode
from virtue_pl.types import DataError


class ImageCheck(NamedTuple):
    """The size and difference hash of a decoded image, or why it cannot be decoded.

    Example:
        >>> check_image(b"", max_pixels=10_000).problem
        'empty image: it has no bytes'
    """

    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels; (0, 0) where it cannot be decoded."""
    difference_hash: int | None = None
    """See `image_hashes.difference_hash`; None for a plain image."""
    problem: str = ""
    """Why it cannot be decoded; "" where it can."""


PendingChecks = Callable[[], list[ImageCheck]]
"""Waits for the checks of some images, and returns them."""

CheckImages = Callable[[Sequence[bytes], int], PendingChecks]
"""Begins to check compressed images of at most so many pixels."""


def check_images(images: Sequence[bytes], max_pixels: int) -> list[ImageCheck]:
    """Return the check of every image, in order."""
    return [check_image(data, max_pixels) for data in images]


def check_image(data: bytes, max_pixels: int) -> ImageCheck:
    """Return the check of one compressed image, of at most `max_pixels` pixels."""
    if not data:
        return ImageCheck(problem="empty image: it has no bytes")
    if data.startswith(APPLE_DOUBLE):
        return ImageCheck(problem="AppleDouble leftover: what macOS leaves beside a file stands in the image's place")
    try:
        image = decode(data, "", max_pixels)
    except DataError as error:
        return ImageCheck(problem=error.problem)
    return ImageCheck((image.shape[1], image.shape[2]), difference_hash(image))


def check_images_here(images: Sequence[bytes], max_pixels: int) -> PendingChecks:
    """Check images in this process, at once."""
    checks = check_images(images, max_pixels)
    return lambda: checks


@contextmanager
def open_image_checker(workers: int) -> Iterator[CheckImages]:
    """Provide a check of images in `workers` processes, or, for 1, in this one.

    Raises VirtueError where a process is killed.
    """
    if workers == 1:
        yield check_images_here
        return
    with worker_pool(workers, __name__) as pool:
        yield lambda images, max_pixels: pool.submit(check_images, images, max_pixels).result


def decode_or_none(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 height width"] | None:
    """Return the decoded image; None where it cannot be decoded."""
    try:
        return decode(data, "", max_pixels)
    except DataError:
        return None
