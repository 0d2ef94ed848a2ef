"""Layers over an image on the canvas: masks in the regions' colours, and a similarity map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from virtue_pl.apps.demo.images import encode_image

COLOURS = ((225, 29, 72), (37, 99, 235), (22, 163, 74), (217, 119, 6), (147, 51, 234), (8, 145, 178))
"""Of the regions, in order, as the canvas has them."""
STRENGTH, SHADE = 0.5, 0.35
"""Opacity of a mask, and of the shade over all that no mask covers."""
SCALE = 4
"""Factor by which masks are enlarged, which smooths their edges."""


def mask_layer(masks: Sequence[Bool[np.ndarray, "height width"]]) -> str | None:
    """Return masks as one transparent PNG's data URI, the rest shaded; None where there are none.

    Example:
        >>> mask_layer([np.eye(4, dtype=bool)])[:22]
        'data:image/png;base64,'
        >>> mask_layer([]) is None
        True
    """
    if not masks:
        return None
    height, width = SCALE * masks[0].shape[0], SCALE * masks[0].shape[1]
    layer = np.zeros((height, width, 4), dtype=np.float32)
    covered = np.zeros((height, width), dtype=np.float32)
    for number, mask in enumerate(masks):
        image = Image.fromarray((mask * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        inside = np.clip((np.asarray(image, dtype=np.float32) / 255 - 0.5) * 4 + 0.5, 0, 1)
        colour = np.array([*COLOURS[number % len(COLOURS)], 255 * STRENGTH], dtype=np.float32)
        layer = layer * (1 - inside[..., None]) + colour * inside[..., None]
        covered = np.maximum(covered, inside)
    layer[..., 3] += 255 * SHADE * (1 - covered)
    return encode_image(Image.fromarray(layer.round().astype(np.uint8), "RGBA"), max(width, height), "png")


def similarity_layer(image: Image.Image, values: Float[np.ndarray, "rows columns"]) -> str:
    """Return a small image with a map over it as a data URI: the more alike, the more of the image stays bright.

    Example:
        >>> similarity_layer(Image.new("RGB", (8, 8)), np.eye(2))[:23]
        'data:image/jpeg;base64,'
    """
    lowest, highest = float(values.min()), float(values.max())
    share = (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)
    small = image.copy()
    small.thumbnail((360, 360))
    heat = Image.fromarray((share * 255).astype(np.uint8)).resize(small.size, Image.Resampling.BICUBIC)
    level = np.asarray(heat, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(small, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True) * 0.45
    warm = np.array([255, 176, 32], dtype=np.float32)
    mixed = grey * (1 - level) + (0.62 * pixels + 0.38 * warm) * level
    return encode_image(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)), 360)
