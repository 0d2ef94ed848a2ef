"""What a look at an image tells the doctor, by one process or by several."""

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


class Looked(NamedTuple):
    """size: (height, width) of the decoded image. looks: its difference hash, None for a plain one. problem: why there
    is none, or "".
    """

    size: tuple[int, int] = (0, 0)
    looks: int | None = None
    problem: str = ""


Answer = Callable[[], list[Looked]]
"""Gives what was seen of the images, once it is known."""

Look = Callable[[Sequence[bytes], int], Answer]
"""Looks at compressed images of at most so many pixels."""


def look_at(images: Sequence[bytes], max_pixels: int) -> list[Looked]:
    return [look_at_one(data, max_pixels) for data in images]


def look_at_one(data: bytes, max_pixels: int) -> Looked:
    if not data:
        return Looked(problem="empty image: it has no bytes")
    if data.startswith(APPLE_DOUBLE):
        return Looked(problem="AppleDouble leftover: what macOS leaves beside a file stands in the image's place")
    try:
        found = decode(data, "", max_pixels)
    except DataError as error:
        return Looked(problem=error.problem)
    return Looked((found.shape[1], found.shape[2]), difference_hash(found))


def at_once(images: Sequence[bytes], max_pixels: int) -> Answer:
    """Looks here and now."""
    found = look_at(images, max_pixels)
    return lambda: found


@contextmanager
def looking(workers: int) -> Iterator[Look]:
    """Looks in `workers` processes, or, for 1, in this one. Raises VirtueError where a process is killed."""
    if workers == 1:
        yield at_once
        return
    with worker_pool(workers, __name__) as pool:
        yield lambda images, max_pixels: pool.submit(look_at, images, max_pixels).result


def shown(data: bytes, max_pixels: int) -> UInt8[Tensor, "3 height width"] | None:
    """The image, if it can be decoded."""
    try:
        return decode(data, "", max_pixels)
    except DataError:
        return None
