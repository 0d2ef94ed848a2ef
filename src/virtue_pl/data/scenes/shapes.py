"""A library of coloured shapes on patterned grounds, which needs no download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from virtue_pl.data.scenes.library import HELD_OUT, TEST, TRAIN, Background, Photograph, SceneLibrary, Thing, trim

CUTOUT_SIZE = 160
"""Width and height of a shape, in pixels."""
GROUND_SIZE = 384
"""Width and height of a ground, in pixels."""
COLOURS = {
    "red": (214, 39, 40),
    "blue": (40, 90, 220),
    "green": (44, 160, 44),
    "yellow": (240, 220, 40),
    "purple": (130, 60, 190),
    "orange": (255, 140, 20),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent")
GROUNDS = ("plain", "striped", "checked", "dotted", "noisy", "wavy", "barred", "shaded")
PALETTES = {
    TRAIN: ((150, 170, 190), (190, 170, 150), (160, 190, 160), (185, 160, 185), (120, 135, 120)),
    TEST: ((170, 150, 160), (150, 185, 190)),
}
"""Ground colours; those of the tests never occur in training."""


def draw_shapes() -> SceneLibrary:
    """Return 56 shapes on 8 grounds.

    A quarter of the shapes is held out; every colour and every form occurs in training.
    """
    things = [
        Thing(
            f"{colour} {shape}",
            f"{colour} {shape}",
            HELD_OUT if (row + column) % 4 == 0 else TRAIN,
            (_shape(shape, COLOURS[colour]),),
            shape,
        )
        for row, colour in enumerate(COLOURS)
        for column, shape in enumerate(SHAPES)
    ]
    backgrounds = [
        Background(
            f"on a {pattern} ground",
            pattern,
            tuple(
                Photograph(f"{pattern}-{split}-{number}", split, _ground(pattern, colour))
                for split, colours in PALETTES.items()
                for number, colour in enumerate(colours)
            ),
        )
        for pattern in GROUNDS
    ]
    return SceneLibrary(things, backgrounds, {"shapes": "drawn by this package"}).check()


def _shape(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    mask = Image.new("L", (4 * CUTOUT_SIZE, 4 * CUTOUT_SIZE), 0)
    _draw(shape, ImageDraw.Draw(mask), 4.0 * CUTOUT_SIZE)
    cutout = Image.new("RGBA", (CUTOUT_SIZE, CUTOUT_SIZE), colour)
    cutout.putalpha(mask.resize((CUTOUT_SIZE, CUTOUT_SIZE), Image.Resampling.LANCZOS))
    return trim(cutout)


def _draw(shape: str, draw: ImageDraw.ImageDraw, size: float) -> None:
    whole = (0, 0, size - 1, size - 1)
    if shape == "square":
        draw.rectangle(whole, fill=255)
    elif shape == "triangle":
        draw.polygon([(size / 2, 0), (size, size), (0, size)], fill=255)
    elif shape == "star":
        draw.polygon(_star(size), fill=255)
    elif shape == "cross":
        draw.rectangle((size / 3, 0, 2 * size / 3, size), fill=255)
        draw.rectangle((0, size / 3, size, 2 * size / 3), fill=255)
    else:
        draw.ellipse(whole, fill=255)
        if shape == "ring":
            draw.ellipse((size / 4, size / 4, 3 * size / 4, 3 * size / 4), fill=0)
        elif shape == "crescent":
            draw.ellipse((size / 3, 0, 4 * size / 3, size), fill=0)


def _star(size: float) -> list[tuple[float, float]]:
    radii = [size / 2 if corner % 2 == 0 else size / 5 for corner in range(10)]
    angles = [math.pi * corner / 5 - math.pi / 2 for corner in range(10)]
    return [
        (size / 2 + radius * math.cos(angle), size / 2 + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


def _ground(pattern: str, colour: Sequence[int]) -> Image.Image:
    light = _pattern(pattern)[..., None]
    return Image.fromarray((np.asarray(colour) * (0.55 + 0.6 * light)).clip(0, 255).astype(np.uint8))


def _pattern(pattern: str) -> Float[np.ndarray, "height width"]:
    """Return a pattern's brightness in [0, 1]."""
    y, x = np.mgrid[:GROUND_SIZE, :GROUND_SIZE].astype(float)
    period = 24.0
    if pattern == "striped":
        return ((x + y) % period < period / 2).astype(float)
    if pattern == "barred":
        return (x % period < period / 2).astype(float)
    if pattern == "checked":
        return ((x // period + y // period) % 2).astype(float)
    if pattern == "dotted":
        return (np.hypot(x % period - period / 2, y % period - period / 2) < period / 4).astype(float)
    if pattern == "wavy":
        return 0.5 + 0.5 * np.sin((y + 10 * np.sin(x / 14)) / 5)
    if pattern == "noisy":
        return np.random.default_rng(0).random((GROUND_SIZE, GROUND_SIZE))
    if pattern == "shaded":
        return y / GROUND_SIZE
    return np.full((GROUND_SIZE, GROUND_SIZE), 0.6)
