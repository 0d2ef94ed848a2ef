"""The things and backgrounds that scenes are composed of, whatever their source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from virtue_pl.types import VirtueError

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
LONGEST = 0.40
"""Longest side of a thing, as a share of the image's width."""


@dataclass(frozen=True, eq=False)
class Thing:
    """An object with a name: all its cut-outs, RGBA, each trimmed to its opaque part.

    Two things of one kind never meet in a scene, nor as each other's swap.

    Example:
        >>> Thing("red circle", "red circle", TRAIN, (Image.new("RGBA", (8, 8), "red"),), "circle").category
        'circle'
    """

    name: str
    kind: str
    split: str
    cutouts: tuple[Image.Image, ...]
    category: str = ""
    """Its superordinate, as in "what animal is it"."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A background image, RGB.

    Example:
        >>> Photograph("beach.jpg", TRAIN, Image.new("RGB", (8, 8))).split
        'train'
    """

    name: str
    split: str
    """Either `train`, or `test` if training never shows it."""
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Background:
    """A scene phrase and its photographs.

    Example:
        >>> beach = Background("on a beach", "beach", (Photograph("beach.jpg", TRAIN, Image.new("RGB", (8, 8))),))
        >>> len(beach.photographs_for(TEST))
        1
    """

    phrase: str
    kind: str
    photographs: tuple[Photograph, ...]

    def photographs_for(self, split: str) -> tuple[Photograph, ...]:
        """Return the photographs for `train` or `test`.

        A test shows photographs of training only where there is no other.
        """
        return tuple(photograph for photograph in self.photographs if photograph.split == split) or self.photographs


@dataclass(frozen=True, eq=False)
class SceneLibrary:
    """All things and backgrounds that may appear.

    Example:
        >>> from virtue_pl.data.scenes.shapes import draw_shapes
        >>> len(draw_shapes().things)  # doctest: +SKIP
        56
    """

    things: Sequence[Thing]
    backgrounds: Sequence[Background]
    licences: dict[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    """Listed images that could not be read."""

    def of_split(self, split: str) -> tuple[Thing, ...]:
        """Return the things of a split, `train` or `held_out`."""
        return tuple(thing for thing in self.things if thing.split == split)

    def check(self) -> SceneLibrary:
        """Return the library. Raises VirtueError where it has too little to compose and caption scenes."""
        for split in (TRAIN, HELD_OUT):
            kinds = len({thing.kind for thing in self.of_split(split)})
            if kinds < 10:
                raise VirtueError(
                    f"found {kinds} kinds of {split} objects, expected 10 or more: run `virtue-pl fetch images`, or use"
                    " --source shapes"
                )
        if len({background.kind for background in self.backgrounds}) < 5:
            raise VirtueError(
                f"found {len(self.backgrounds)} backgrounds, expected 5 or more: run `virtue-pl fetch images`, or use"
                " --source shapes"
            )
        return self


def trim(cutout: Image.Image) -> Image.Image:
    """Return the cut-out without its transparent margin (opaque: alpha of 128 or more)."""
    return cutout.crop(cutout.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox())
