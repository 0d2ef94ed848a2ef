"""One scene: its things, their layout, the image with exact masks, and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.captions import (
    TEMPLATES,
    Claim,
    Situation,
    Vocabulary,
    balanced_claims,
    negative_claims,
    published_claims,
)
from virtue_pl.data.scenes.layout import Layout, draw_layout, relation_between
from virtue_pl.data.scenes.library import HELD_OUT, TEST, TRAIN, Background, Photograph, SceneLibrary, Thing
from virtue_pl.data.scenes.staging import Region, crop_background, draw_cutout, paste, stands_out, visible_regions
from virtue_pl.types import VirtueError

BYSTANDER_CHANCE = 0.5
ATTEMPTS = 40


@dataclass(frozen=True, eq=False)
class SceneSample:
    """One target of a scene: hard negatives in training, else two forms of ten captions, the true one first.

    Example:
        >>> region = Region(np.ones((2, 2), bool), (0, 0, 2, 2))
        >>> SceneSample(region, "fox", "a fox above an owl", negatives=("an owl above a fox",)).category
        'fox'
    """

    region: Region
    category: str
    caption: str
    negatives: tuple[str, ...] = ()
    balanced: tuple[str, ...] = ()
    published: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """A composed image, its background photograph, and a sample for each of its two targets.

    Example:
        >>> scene = compose(np.random.default_rng(0), Cast.of("train", library), 256, training=True)  # doctest: +SKIP
        >>> scene.image.size, len(scene.samples)  # doctest: +SKIP
        ((256, 256), 2)
    """

    image: Image.Image
    photograph: Photograph
    samples: tuple[SceneSample, ...]


@dataclass(frozen=True, eq=False)
class Cast:
    """The things and backgrounds that may appear in a split.

    Example:
        >>> Cast.of("test_held_out", library).photographs  # doctest: +SKIP
        'test'
    """

    targets: Sequence[Thing]
    """Things that are targets, or replace one in a caption."""
    rest: Sequence[Thing]
    """Things that are references and bystanders."""
    backgrounds: Sequence[Background]
    photographs: str
    """Split of the background photographs: `train` or `test`."""

    @classmethod
    def of(cls, split: str, library: SceneLibrary) -> Cast:
        """Return the cast of a split.

        Its things are objects of training, but for the targets of `test_held_out`; test photographs are for the two
        tests.
        """
        train = library.of_split(TRAIN)
        targets = library.of_split(HELD_OUT) if split == "test_held_out" else train
        return cls(targets, train, library.backgrounds, TEST if split.startswith("test") else TRAIN)


def compose(rng: np.random.Generator, cast: Cast, image_size: int, training: bool) -> Scene:
    """Return the scene that `rng` draws, of `image_size` pixels a side. Raises VirtueError where no layout fits."""
    for _ in range(ATTEMPTS):
        things = _draw_things(rng, cast)
        cutouts = [draw_cutout(rng, thing, image_size) for thing in things]
        layout = draw_layout(rng, [cutout.size for cutout in cutouts], image_size)
        if layout is None:
            continue
        background = cast.backgrounds[int(rng.integers(len(cast.backgrounds)))]
        photographs = background.photographs_for(cast.photographs)
        photograph = photographs[int(rng.integers(len(photographs)))]
        backdrop = crop_background(rng, photograph.image, image_size)
        image, owners = paste(rng, backdrop, cutouts, layout.boxes)
        regions = visible_regions(owners, cutouts[: len(layout.boxes)])
        if (
            regions is None
            or not _relations_hold(regions, layout)
            or not all(stands_out(image, backdrop, region) for region in regions[:2])
        ):
            continue
        samples = _samples(rng, things[: len(layout.boxes)], layout, regions, background, cast, training)
        return Scene(image, photograph, samples)
    raise VirtueError(
        f"no scene of {image_size} pixels fits the things drawn in {ATTEMPTS} attempts: choose another --size"
    )


def _draw_things(rng: np.random.Generator, cast: Cast) -> list[Thing]:
    """Return two targets, two references, perhaps a bystander, all of different kinds."""
    count = 5 if rng.random() < BYSTANDER_CHANCE else 4
    chosen: list[Thing] = []
    while len(chosen) < count:
        pool = cast.targets if len(chosen) < 2 else cast.rest
        thing = pool[int(rng.integers(len(pool)))]
        if all(thing.kind != other.kind for other in chosen):
            chosen.append(thing)
    return chosen


def _relations_hold(regions: Sequence[Region], layout: Layout) -> bool:
    """Return whether both relations are still clear between the visible parts."""
    return all(relation_between(regions[i].box, regions[i + 2].box) == layout.relations[i] for i in range(2))


def _samples(
    rng: np.random.Generator,
    things: Sequence[Thing],
    layout: Layout,
    regions: Sequence[Region],
    background: Background,
    cast: Cast,
    training: bool,
) -> tuple[SceneSample, ...]:
    vocabulary = Vocabulary(cast.targets, cast.backgrounds)
    samples = []
    for index, relation in enumerate(layout.relations):
        thing, reference = things[index], things[index + 2]
        others = [other for other in things if other is not thing and other is not reference]
        situation = Situation(Claim(thing, relation, reference, background), others)
        samples.append(_sample(rng, situation, regions[index], vocabulary, training))
    return tuple(samples)


def _sample(
    rng: np.random.Generator, situation: Situation, region: Region, vocabulary: Vocabulary, training: bool
) -> SceneSample:
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]

    def sentences(claims: Sequence[Claim]) -> tuple[str, ...]:
        return tuple(claim.sentence(template) for claim in claims)

    caption, category = situation.gold.sentence(template), situation.gold.thing.name
    if training:
        return SceneSample(region, category, caption, negatives=sentences(negative_claims(rng, situation, vocabulary)))
    candidates = (
        sentences(balanced_claims(rng, situation, vocabulary)),
        sentences(published_claims(rng, situation, vocabulary)),
    )
    return SceneSample(region, category, caption, balanced=candidates[0], published=candidates[1])
