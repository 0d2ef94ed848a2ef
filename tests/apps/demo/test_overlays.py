"""Layers over an image: what is masked, in whose colour, and what a map makes bright."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from virtue_pl.apps.demo.overlays import COLOURS, SCALE, mask_layer, similarity_layer


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_mask_is_tinted_and_the_rest_is_shaded():
    mask = np.zeros((8, 12), bool)
    mask[2:6, 3:9] = True
    other = np.zeros((8, 12), bool)
    other[0:2, 0:2] = True
    layer = pixels(mask_layer([mask, other]))
    assert layer.shape == (8 * SCALE, 12 * SCALE, 4)
    assert tuple(layer[4 * SCALE, 6 * SCALE, :3]) == COLOURS[0]
    assert np.abs(layer[SCALE // 2, SCALE // 2, :3].astype(int) - COLOURS[1]).max() <= 40
    shade = layer[-1, -1]
    assert tuple(shade[:3]) == (0, 0, 0) and 0 < shade[3] < layer[4 * SCALE, 6 * SCALE, 3]


def test_the_map_keeps_what_is_alike_bright():
    image = Image.new("RGB", (64, 64), (200, 100, 50))
    values = np.zeros((2, 2))
    values[0, 1] = 1.0
    drawn = pixels(similarity_layer(image, values)).astype(float)
    assert drawn[4:12, 52:60].mean() > 1.3 * drawn[52:60, 4:12].mean()


def test_a_flat_map_is_no_error():
    assert similarity_layer(Image.new("RGB", (5, 300)), np.ones((8, 8))).startswith("data:image/jpeg")
