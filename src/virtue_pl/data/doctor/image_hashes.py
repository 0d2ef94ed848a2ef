"""ImageBatch that are the same, or look the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

BITS = 64
NEAR = 3
"""Bits by which the hashes of two images that look the same may differ: of four quarters one is equal then."""

PLAIN = 6
"""An image whose hash has so few ones or zeros (a plain surface, a slope of light) looks like too many others to be
told by it.
"""


def difference_hash(image: UInt8[Tensor, "3 height width"]) -> int | None:
    """64 bits, each whether a place is darker than its right neighbour in the image of 9x8 grey places; None for a
    plain image.

    Scaling, compression and small shifts of colour leave most of them as they are; crops and mirrors do not.
    """
    grey = (
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("L").resize((9, 8), Image.Resampling.BOX)
    )
    places = np.asarray(grey, dtype=np.int16)
    bits = (places[:, 1:] > places[:, :-1]).reshape(-1)
    if not PLAIN <= int(bits.sum()) <= BITS - PLAIN:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look_alike(known: Iterable[int], asked: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The names among `asked` whose hash is near one of `known`, with that one."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for value in set(known):
        for quarter in range(4):
            buckets[quarter, value >> 16 * quarter & 0xFFFF].append(value)
    for name, value in asked.items():
        close = (
            other
            for quarter in range(4)
            for other in buckets[quarter, value >> 16 * quarter & 0xFFFF]
            if (value ^ other).bit_count() <= NEAR
        )
        found = next(close, None)
        if found is not None:
            yield name, found
