"""Difference hashes: which images look the same."""

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
"""An image whose hash has fewer ones or zeros (a plain surface, a gradient) looks like too many others."""


def difference_hash(image: UInt8[Tensor, "3 height width"]) -> int | None:
    """Return 64 bits: whether each cell of the image, reduced to 9x8 grey cells, is darker than its right neighbour.

    Return None for a plain image. Scaling, compression and small shifts of colour leave most bits as they are; crops
    and mirrored images differ.
    """
    grey = (
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("L").resize((9, 8), Image.Resampling.BOX)
    )
    cells = np.asarray(grey, dtype=np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).reshape(-1)
    if not PLAIN <= int(bits.sum()) <= BITS - PLAIN:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_lookalikes(hashes: Iterable[int], candidates: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield each name of `candidates` (name -> hash) whose hash is near one of `hashes`, with that hash."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for value in set(hashes):
        for quarter in range(4):
            buckets[quarter, value >> 16 * quarter & 0xFFFF].append(value)
    for name, value in candidates.items():
        close = (
            other
            for quarter in range(4)
            for other in buckets[quarter, value >> 16 * quarter & 0xFFFF]
            if (value ^ other).bit_count() <= NEAR
        )
        found = next(close, None)
        if found is not None:
            yield name, found
