"""Coloured shapes on patterned grounds, as a library that needs no download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from virtue_pl.data.scenes.library import HELD_OUT, TEST, TRAIN, Background, Photograph, SceneLibrary, Thing, trim

SIDE = 160
GROUND_SIDE = 384
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
"""Ground colours; those of the tests are never seen in training."""


def draw_shapes() -> SceneLibrary:
    """56 shapes, a quarter of them held out (every colour and every form is seen in training), on 8 grounds."""
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
    places = [
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
    return SceneLibrary(things, places, {"shapes": "drawn by this package"}).check()


def _shape(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    mask = Image.new("L", (4 * SIDE, 4 * SIDE), 0)
    _draw(shape, ImageDraw.Draw(mask), 4.0 * SIDE)
    cutout = Image.new("RGBA", (SIDE, SIDE), colour)
    cutout.putalpha(mask.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return trim(cutout)


def _draw(shape: str, draw: ImageDraw.ImageDraw, side: float) -> None:
    whole = (0, 0, side - 1, side - 1)
    if shape == "square":
        draw.rectangle(whole, fill=255)
    elif shape == "triangle":
        draw.polygon([(side / 2, 0), (side, side), (0, side)], fill=255)
    elif shape == "star":
        draw.polygon(_star(side), fill=255)
    elif shape == "cross":
        draw.rectangle((side / 3, 0, 2 * side / 3, side), fill=255)
        draw.rectangle((0, side / 3, side, 2 * side / 3), fill=255)
    else:
        draw.ellipse(whole, fill=255)
        if shape == "ring":
            draw.ellipse((side / 4, side / 4, 3 * side / 4, 3 * side / 4), fill=0)
        elif shape == "crescent":
            draw.ellipse((side / 3, 0, 4 * side / 3, side), fill=0)


def _star(side: float) -> list[tuple[float, float]]:
    radii = [side / 2 if corner % 2 == 0 else side / 5 for corner in range(10)]
    angles = [math.pi * corner / 5 - math.pi / 2 for corner in range(10)]
    return [
        (side / 2 + radius * math.cos(angle), side / 2 + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


def _ground(pattern: str, colour: Sequence[int]) -> Image.Image:
    light = _pattern(pattern)[..., None]
    return Image.fromarray((np.asarray(colour) * (0.55 + 0.6 * light)).clip(0, 255).astype(np.uint8))


def _pattern(pattern: str) -> Float[np.ndarray, "height width"]:
    """Brightness in [0, 1]."""
    y, x = np.mgrid[:GROUND_SIDE, :GROUND_SIDE].astype(float)
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
        return np.random.default_rng(0).random((GROUND_SIDE, GROUND_SIDE))
    if pattern == "shaded":
        return y / GROUND_SIDE
    return np.full((GROUND_SIDE, GROUND_SIDE), 0.6)
