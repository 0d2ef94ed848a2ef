"""One scene: its things, where they stand, the image with exact masks, and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.captions import TEMPLATES, Claim, Situation, Vocabulary, balanced, hard_negatives, published
from virtue_pl.data.scenes.layout import Layout, draw_layout, relation_between
from virtue_pl.data.scenes.library import HELD_OUT, TEST, TRAIN, Background, Photograph, SceneLibrary, Thing
from virtue_pl.data.scenes.staging import Region, crop_background, draw_cutout, paste, stands_out, visible_regions
from virtue_pl.types import VirtueError

BYSTANDER_CHANCE = 0.5
ATTEMPTS = 40


@dataclass(frozen=True, eq=False)
class SceneSample:
    """One target of a scene: hard negatives in training, else two forms of ten captions, the true one first."""

    region: Region
    category: str
    caption: str
    negatives: tuple[str, ...] = ()
    balanced: tuple[str, ...] = ()
    published: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    image: Image.Image
    photograph: Photograph
    samples: tuple[SceneSample, ...]


@dataclass(frozen=True, eq=False)
class Cast:
    """Who may appear in a split: targets (and their swaps), the rest, and which photographs."""

    targets: Sequence[Thing]
    rest: Sequence[Thing]
    places: Sequence[Background]
    photographs: str

    @classmethod
    def of(cls, split: str, library: SceneLibrary) -> Cast:
        """Training objects everywhere, but for the targets of `test_held_out`; test photographs in both tests only."""
        train = library.of_split(TRAIN)
        targets = library.of_split(HELD_OUT) if split == "test_held_out" else train
        return cls(targets, train, library.places, TEST if split.startswith("test") else TRAIN)


def compose(rng: np.random.Generator, cast: Cast, side: int, training: bool) -> Scene:
    """The scene that `rng` stands for."""
    for _ in range(ATTEMPTS):
        things = _draw_things(rng, cast)
        cutouts = [draw_cutout(rng, thing, side) for thing in things]
        layout = draw_layout(rng, [cutout.size for cutout in cutouts], side)
        if layout is None:
            continue
        place = cast.places[int(rng.integers(len(cast.places)))]
        photographs = place.shown_in(cast.photographs)
        photograph = photographs[int(rng.integers(len(photographs)))]
        background = crop_background(rng, photograph.image, side)
        image, owners = paste(rng, background, cutouts, layout.boxes)
        regions = visible_regions(owners, cutouts[: len(layout.boxes)])
        if (
            regions is None
            or not _relations_hold(regions, layout)
            or not all(stands_out(image, background, region) for region in regions[:2])
        ):
            continue
        samples = _samples(rng, things[: len(layout.boxes)], layout, regions, place, cast, training)
        return Scene(image, photograph, samples)
    raise VirtueError(f"no scene of {side} pixels fits the things drawn in {ATTEMPTS} attempts: choose another --size")


def _draw_things(rng: np.random.Generator, cast: Cast) -> list[Thing]:
    """Two targets, two references, perhaps a bystander, all of different kinds."""
    count = 5 if rng.random() < BYSTANDER_CHANCE else 4
    chosen: list[Thing] = []
    while len(chosen) < count:
        pool = cast.targets if len(chosen) < 2 else cast.rest
        thing = pool[int(rng.integers(len(pool)))]
        if all(thing.kind != other.kind for other in chosen):
            chosen.append(thing)
    return chosen


def _relations_hold(regions: Sequence[Region], layout: Layout) -> bool:
    """Whether both relations are still clear between what is visible."""
    return all(relation_between(regions[i].box, regions[i + 2].box) == layout.relations[i] for i in range(2))


def _samples(
    rng: np.random.Generator,
    things: Sequence[Thing],
    layout: Layout,
    regions: Sequence[Region],
    place: Background,
    cast: Cast,
    training: bool,
) -> tuple[SceneSample, ...]:
    vocabulary = Vocabulary(cast.targets, cast.places)
    samples = []
    for index, relation in enumerate(layout.relations):
        thing, reference = things[index], things[index + 2]
        others = [other for other in things if other is not thing and other is not reference]
        situation = Situation(Claim(thing, relation, reference, place), others)
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
        return SceneSample(region, category, caption, negatives=sentences(hard_negatives(rng, situation, vocabulary)))
    candidates = sentences(balanced(rng, situation, vocabulary)), sentences(published(rng, situation, vocabulary))
    return SceneSample(region, category, caption, balanced=candidates[0], published=candidates[1])
