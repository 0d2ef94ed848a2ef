"""Cut-outs on a background: the image, and each one's exact mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from virtue_pl.data.scenes.layout import Box
from virtue_pl.data.scenes.library import LONGEST, Thing
from virtue_pl.preprocessing.segmentations import box_of

SIZES = (0.16, 0.27)
"""Smallest and largest size of a thing, as shares of the image's width: the square root of its box's area."""
VISIBLE = 0.8
"""Smallest visible share of every thing."""
CONTRAST = 20
"""Smallest mean difference of a target's pixels from the background under them, of 255."""


@dataclass(frozen=True, eq=False)
class Region:
    """A target's visible pixels and the box around them (x, y, width, height in pixels).

    Example:
        >>> Region(np.eye(4, dtype=bool), (0, 0, 4, 4)).box
        (0, 0, 4, 4)
    """

    mask: Bool[np.ndarray, "height width"]
    box: tuple[int, int, int, int]


def draw_cutout(
    rng: np.random.Generator, thing: Thing, image_size: int, sizes: tuple[float, float] = SIZES
) -> Image.Image:
    """Return one of the thing's cut-outs at a random size (of `sizes`).

    It may be mirrored, and is a little brighter or darker.
    """
    cutout = thing.cutouts[int(rng.integers(len(thing.cutouts)))]
    wanted = image_size * rng.uniform(*sizes)
    scale = min(wanted / (cutout.width * cutout.height) ** 0.5, image_size * LONGEST / max(cutout.size))
    sized = cutout.resize(
        (max(4, round(cutout.width * scale)), max(4, round(cutout.height * scale))),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,
    )
    if rng.random() < 0.5:
        sized = sized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _jitter(rng, sized)


def _jitter(rng: np.random.Generator, cutout: Image.Image) -> Image.Image:
    table = (rng.uniform(0.85, 1.15) * np.arange(256) + rng.uniform(-12, 12)).clip(0, 255).astype(np.uint8)
    pixels = np.array(cutout)
    pixels[..., :3] = table[pixels[..., :3]]
    return Image.fromarray(pixels)


def crop_background(rng: np.random.Generator, background: Image.Image, image_size: int) -> Image.Image:
    """Return a random square of the photograph, at least three fifths of its shorter side."""
    extent = rng.uniform(0.6, 1.0) * min(background.size)
    x, y = rng.uniform(0, background.width - extent), rng.uniform(0, background.height - extent)
    image = background.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(x, y, x + extent, y + extent))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def paste(
    rng: np.random.Generator, background: Image.Image, cutouts: Sequence[Image.Image], boxes: Sequence[Box]
) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
    """Return the background with things on it in random order, and the owner of each pixel.

    0 is the background, i + 1 thing i.
    """
    image = background.copy()
    owners = np.zeros((image.height, image.width), dtype=np.uint8)
    for index in rng.permutation(len(boxes)):
        cutout, (x, y) = cutouts[index], _corner(boxes[index])
        image.paste(cutout, (x, y), cutout)
        view = owners[y : y + cutout.height, x : x + cutout.width]
        view[_opaque(cutout)[: view.shape[0], : view.shape[1]]] = index + 1
    return image, owners


def _corner(box: Box) -> tuple[int, int]:
    return int(box.x), int(box.y)


def _opaque(cutout: Image.Image) -> Bool[np.ndarray, "height width"]:
    return np.asarray(cutout.getchannel("A")) >= 128


def visible_regions(owners: UInt8[np.ndarray, "height width"], cutouts: Sequence[Image.Image]) -> list[Region] | None:
    """Return the visible region of every cut-out; None where too much of one is hidden."""
    regions = []
    for index, cutout in enumerate(cutouts):
        mask = owners == index + 1
        if mask.sum() < max(16, VISIBLE * _opaque(cutout).sum()):
            return None
        regions.append(Region(mask, _bounds(mask)))
    return regions


def _bounds(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box_of(mask) or (0, 0, 0, 0)
    return x1, y1, x2 - x1, y2 - y1


def stands_out(image: Image.Image, background: Image.Image, region: Region) -> bool:
    """Return whether the region differs from the background under it.

    That depends on its box, never on its relation.
    """
    x, y, width, height = region.box
    box = (x, y, x + width, y + height)
    difference = np.abs(np.asarray(image.crop(box), dtype=np.int16) - np.asarray(background.crop(box), dtype=np.int16))
    return float(difference[region.mask[y : y + height, x : x + width]].mean()) >= CONTRAST
