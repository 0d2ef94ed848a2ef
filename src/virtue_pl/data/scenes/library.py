"""What scenes are composed of, whichever source it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from virtue_pl.types import VirtueError

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
LONGEST = 0.40
"""Longest side of a thing, as part of the image's side."""


@dataclass(frozen=True, eq=False)
class Thing:
    """An object that can be named: all its cut-outs, RGBA, each trimmed to its opaque part.

    Two things of one kind never meet in a scene, nor as each other's swap. category: what one asks for, as in "what
    animal is it".
    """

    name: str
    kind: str
    split: str
    cutouts: tuple[Image.Image, ...]
    category: str = ""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A background image, RGB; `split` is `train`, or `test` if training never shows it."""

    name: str
    split: str
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Background:
    """A scene phrase and its photographs."""

    phrase: str
    kind: str
    photographs: tuple[Photograph, ...]

    def shown_in(self, split: str) -> tuple[Photograph, ...]:
        """The photographs for `train` or `test`; a test shows training photographs only where there is no other."""
        return tuple(photograph for photograph in self.photographs if photograph.split == split) or self.photographs


@dataclass(frozen=True, eq=False)
class SceneLibrary:
    """Everything that may appear; `missing` are listed images that are not there."""

    things: Sequence[Thing]
    places: Sequence[Background]
    licences: dict[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def of_split(self, split: str) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.split == split)

    def check(self) -> SceneLibrary:
        """Itself. Raises VirtueError where there is too little to compose and caption scenes."""
        for split in (TRAIN, HELD_OUT):
            kinds = len({thing.kind for thing in self.of_split(split)})
            if kinds < 10:
                raise VirtueError(
                    f"found {kinds} kinds of {split} objects, expected 10 or more: run `virtue-pl fetch images`, or use"
                    " --source shapes"
                )
        if len({place.kind for place in self.places}) < 5:
            raise VirtueError(
                f"found {len(self.places)} backgrounds, expected 5 or more: run `virtue-pl fetch images`, or use"
                " --source shapes"
            )
        return self


def trim(cutout: Image.Image) -> Image.Image:
    """The cut-out without its transparent margin (opaque: alpha of 128 or more)."""
    return cutout.crop(cutout.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0).getbbox())
