"""One scene: its things, where they stand, the picture with exact masks, and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from virtue_pl.data.scenes.captions import TEMPLATES, Claim, Situation, Vocabulary, balanced, hard_negatives, published
from virtue_pl.data.scenes.layout import Box, Layout, draw_layout, relation_between
from virtue_pl.data.scenes.library import HELD_OUT, LONGEST, TEST, TRAIN, Photograph, Place, SceneLibrary, Thing
from virtue_pl.types import VirtueError

SMALLEST, LARGEST = 0.16, 0.27
"""A thing's size as parts of the picture's side: square root of its box's area. Its longest side is limited by `library.LONGEST`."""
BYSTANDER_CHANCE = 0.5
VISIBLE = 0.8
"""Least visible part of every thing."""
CONTRAST = 20
"""Least mean difference of a target's pixels from the background under them, of 255."""
ATTEMPTS = 40


@dataclass(frozen=True, eq=False)
class Region:
    """A target's visible pixels and the box around them (x, y, width, height in pixels)."""

    mask: Bool[np.ndarray, "height width"]
    box: tuple[int, int, int, int]


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
    picture: Image.Image
    photograph: Photograph
    samples: tuple[SceneSample, ...]


@dataclass(frozen=True, eq=False)
class Cast:
    """Who may appear in a split: targets (and their swaps), the rest, and which photographs."""

    targets: Sequence[Thing]
    rest: Sequence[Thing]
    places: Sequence[Place]
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
        cutouts = [_draw_cutout(rng, thing, side) for thing in things]
        layout = draw_layout(rng, [cutout.size for cutout in cutouts], side)
        if layout is None:
            continue
        place = cast.places[int(rng.integers(len(cast.places)))]
        photographs = place.shown_in(cast.photographs)
        photograph = photographs[int(rng.integers(len(photographs)))]
        background = _crop(rng, photograph.picture, side)
        picture, owners = _paste(rng, background, cutouts, layout)
        regions = _regions(owners, cutouts, layout)
        if regions is None or not all(_stands_out(picture, background, region) for region in regions[:2]):
            continue
        samples = _samples(rng, things[: len(layout.boxes)], layout, regions, place, cast, training)
        return Scene(picture, photograph, samples)
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


def _draw_cutout(rng: np.random.Generator, thing: Thing, side: int) -> Image.Image:
    """One of the thing's cut-outs at a random size, perhaps mirrored, a little brighter or darker."""
    cutout = thing.cutouts[int(rng.integers(len(thing.cutouts)))]
    wanted = side * rng.uniform(SMALLEST, LARGEST)
    scale = min(wanted / (cutout.width * cutout.height) ** 0.5, side * LONGEST / max(cutout.size))
    sized = cutout.resize((max(4, round(cutout.width * scale)), max(4, round(cutout.height * scale))), Image.Resampling.BICUBIC, reducing_gap=2.0)
    if rng.random() < 0.5:
        sized = sized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _jitter(rng, sized)


def _jitter(rng: np.random.Generator, cutout: Image.Image) -> Image.Image:
    table = (rng.uniform(0.85, 1.15) * np.arange(256) + rng.uniform(-12, 12)).clip(0, 255).astype(np.uint8)
    pixels = np.array(cutout)
    pixels[..., :3] = table[pixels[..., :3]]
    return Image.fromarray(pixels)


def _crop(rng: np.random.Generator, background: Image.Image, side: int) -> Image.Image:
    """A random square of the photograph, at least three fifths of its shorter side."""
    extent = rng.uniform(0.6, 1.0) * min(background.size)
    x, y = rng.uniform(0, background.width - extent), rng.uniform(0, background.height - extent)
    picture = background.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + extent, y + extent))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def _paste(
    rng: np.random.Generator, background: Image.Image, cutouts: Sequence[Image.Image], layout: Layout
) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
    """The background with things on it in random order, and whose each pixel is (0: background; i + 1: thing i)."""
    picture = background.copy()
    owners = np.zeros((picture.height, picture.width), dtype=np.uint8)
    for index in rng.permutation(len(layout.boxes)):
        cutout, (x, y) = cutouts[index], _corner(layout.boxes[index])
        picture.paste(cutout, (x, y), cutout)
        view = owners[y : y + cutout.height, x : x + cutout.width]
        view[_opaque(cutout)[: view.shape[0], : view.shape[1]]] = index + 1
    return picture, owners


def _corner(box: Box) -> tuple[int, int]:
    return int(box.x), int(box.y)


def _opaque(cutout: Image.Image) -> Bool[np.ndarray, "height width"]:
    return np.asarray(cutout.getchannel("A")) >= 128


def _regions(owners: UInt8[np.ndarray, "height width"], cutouts: Sequence[Image.Image], layout: Layout) -> list[Region] | None:
    """Every thing's visible region, or None where one is hidden too much or a relation is no longer clear."""
    regions = []
    for index, cutout in enumerate(cutouts[: len(layout.boxes)]):
        mask = owners == index + 1
        if mask.sum() < max(16, VISIBLE * _opaque(cutout).sum()):
            return None
        regions.append(Region(mask, _bounds(mask)))
    clear = all(relation_between(regions[i].box, regions[i + 2].box) == layout.relations[i] for i in range(2))
    return regions if clear else None


def _bounds(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _stands_out(picture: Image.Image, background: Image.Image, region: Region) -> bool:
    """Whether the region can be told from the background; that depends on its place, never on its relation."""
    x, y, width, height = region.box
    box = (x, y, x + width, y + height)
    difference = np.abs(np.asarray(picture.crop(box), dtype=np.int16) - np.asarray(background.crop(box), dtype=np.int16))
    return float(difference[region.mask[y : y + height, x : x + width]].mean()) >= CONTRAST


def _samples(
    rng: np.random.Generator, things: Sequence[Thing], layout: Layout, regions: Sequence[Region], place: Place, cast: Cast, training: bool
) -> tuple[SceneSample, ...]:
    vocabulary = Vocabulary(cast.targets, cast.places)
    samples = []
    for index, relation in enumerate(layout.relations):
        thing, reference = things[index], things[index + 2]
        others = [other for other in things if other is not thing and other is not reference]
        situation = Situation(Claim(thing, relation, reference, place), others)
        samples.append(_sample(rng, situation, regions[index], vocabulary, training))
    return tuple(samples)


def _sample(rng: np.random.Generator, situation: Situation, region: Region, vocabulary: Vocabulary, training: bool) -> SceneSample:
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]

    def sentences(claims: Sequence[Claim]) -> tuple[str, ...]:
        return tuple(claim.sentence(template) for claim in claims)

    caption, category = situation.gold.sentence(template), situation.gold.thing.name
    if training:
        return SceneSample(region, category, caption, negatives=sentences(hard_negatives(rng, situation, vocabulary)))
    candidates = sentences(balanced(rng, situation, vocabulary)), sentences(published(rng, situation, vocabulary))
    return SceneSample(region, category, caption, balanced=candidates[0], published=candidates[1])
