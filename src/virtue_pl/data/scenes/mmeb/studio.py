"""Images of things on photographs, as the tasks of MMEB-mini need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.captions import distinct_kinds
from virtue_pl.data.scenes.layout import Box, scatter
from virtue_pl.data.scenes.library import TRAIN, Background, Photograph, SceneLibrary, Thing
from virtue_pl.data.scenes.staging import (
    SIZES,
    Region,
    crop_background,
    draw_cutout,
    paste,
    stands_out,
    visible_regions,
)
from virtue_pl.types import VirtueError

ATTEMPTS = 60
"""Attempts to draw an image, before and after its things are made smaller."""
SMALLER = 0.7
Arrange = Callable[[np.random.Generator, Sequence[tuple[float, float]], int], Sequence[Box] | None]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Shot:
    """An image, and the visible region of each of its things, in order.

    Example:
        >>> shot = studio.shoot(np.random.default_rng(0), things, background)  # doctest: +SKIP
        >>> len(shot.regions) == len(things)  # doctest: +SKIP
        True
    """

    image: Image.Image
    regions: Sequence[Region]


@dataclass(frozen=True, eq=False)
class Studio:
    """Makes images of objects of training, on photographs of one split.

    Example:
        >>> from virtue_pl.data.scenes.shapes import draw_shapes
        >>> studio = Studio(draw_shapes(), image_size=256, photographs="train")  # doctest: +SKIP
        >>> len(studio.draw_things(np.random.default_rng(0), 20))  # doctest: +SKIP
        20
    """

    library: SceneLibrary
    image_size: int
    """Width and height of the images, in pixels."""
    photographs: str
    """Split of the photographs: `train` or `test`."""

    @property
    def things(self) -> tuple[Thing, ...]:
        """Return the objects of training."""
        return self.library.of_split(TRAIN)

    def draw_things(
        self, rng: np.random.Generator, count: int, excluded: Sequence[Thing] = (), among: Sequence[Thing] | None = None
    ) -> list[Thing]:
        """Return things of different kinds, none of the kind of an `excluded` one, in random order.

        There are fewer than `count` where there are no more kinds; `among` are the things to draw from, by default all.
        """
        return shuffle(rng, distinct_kinds(rng, self.things if among is None else among, excluded, count))

    def draw_backgrounds(self, rng: np.random.Generator, count: int) -> list[Background]:
        """Return backgrounds of different kinds, in random order."""
        return shuffle(rng, distinct_kinds(rng, self.library.backgrounds, (), count))

    def shoot(
        self,
        rng: np.random.Generator,
        things: Sequence[Thing],
        background: Background,
        arrange: Arrange = scatter,
        sizes: tuple[float, float] = SIZES,
    ) -> Shot:
        """Return an image of `things`, all visible, on `background`.

        After many attempts they are drawn smaller, and need not stand out from a background of their own colour any
        more. Raises VirtueError where they do not fit even then.
        """
        for attempt in range(2 * ATTEMPTS):
            if attempt == ATTEMPTS:
                sizes = (sizes[0] * SMALLER, sizes[1] * SMALLER)
            cutouts = [draw_cutout(rng, thing, self.image_size, sizes) for thing in things]
            boxes = arrange(rng, [cutout.size for cutout in cutouts], self.image_size)
            if boxes is None:
                continue
            backdrop = crop_background(rng, self._photograph(rng, background).image, self.image_size)
            image, owners = paste(rng, backdrop, cutouts, boxes)
            regions = visible_regions(owners, cutouts)
            if regions is not None and (
                attempt >= ATTEMPTS or all(stands_out(image, backdrop, region) for region in regions)
            ):
                return Shot(image, regions)
        raise VirtueError(
            f"{len(things)} things do not fit an image of {self.image_size} pixels in {2 * ATTEMPTS} attempts: choose"
            " another --size"
        )

    def _photograph(self, rng: np.random.Generator, background: Background) -> Photograph:
        photographs = background.photographs_for(self.photographs)
        return photographs[int(rng.integers(len(photographs)))]


def choose(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of the items, each with the same chance."""
    return items[int(rng.integers(len(items)))]


def shuffle(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Return the items in random order."""
    return [items[index] for index in rng.permutation(len(items))]
