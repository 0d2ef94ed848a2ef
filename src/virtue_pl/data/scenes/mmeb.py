"""MMEB-mini: eight tasks in MMEB's form, two of each of its meta-tasks, from the same cut-outs and photographs as the
scenes.

Candidates are drawn first, and which of them is right afterwards, each alike: whoever sees the candidates alone is at
chance.
Where rows share a list of candidates (a group), each candidate is right in exactly one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.captions import distinct_kinds, with_article
from virtue_pl.data.scenes.layout import QUARTERS, Box, quarters, related, relation_between, scatter
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

IMAGE = "<|image_1|>\n"
QUESTION = f"{IMAGE}Represent the given image with the following question: "
SINGLE = (0.25, 0.4)
"""Size of a thing that is alone, see `staging.SIZES`."""
MARGIN = 0.1
"""What a cropped object's image shows beyond its box, as part of the box's sides."""
ATTEMPTS = 60
SMALLER = 0.7
ASKED = {"household": "household object"}
"""How a category is asked for, where its name alone is no noun."""

Arrange = Callable[[np.random.Generator, Sequence[tuple[float, float]], int], Sequence[Box] | None]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A candidate. image: its name in the group, or "" for none."""

    text: str
    image: str = ""


@dataclass(frozen=True)
class Question:
    """A row: a query, with an image or "" for none, and its candidates, the right one first."""

    text: str
    image: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that belong together, and all their images by name."""

    images: dict[str, Image.Image]
    questions: tuple[Question, ...]


@dataclass(frozen=True, eq=False)
class Shot:
    """An image and where each of its things is to be seen, in order."""

    image: Image.Image
    regions: Sequence[Region]


@dataclass(frozen=True, eq=False)
class Studio:
    """Makes images of objects of training, on photographs of the split `photographs` ("train" or "test"); `side` is
    theirs, in pixels.
    """

    library: SceneLibrary
    side: int
    photographs: str

    @property
    def things(self) -> tuple[Thing, ...]:
        return self.library.of_split(TRAIN)

    def draw_things(
        self, rng: np.random.Generator, count: int, taken: Sequence[Thing] = (), among: Sequence[Thing] | None = None
    ) -> list[Thing]:
        """Things of different kinds, none of a kind that is `taken`, in random order; fewer where there are no more
        kinds.
        """
        return shuffled(rng, distinct_kinds(rng, self.things if among is None else among, taken, count))

    def draw_places(self, rng: np.random.Generator, count: int) -> list[Background]:
        return shuffled(rng, distinct_kinds(rng, self.library.places, (), count))

    def shoot(
        self,
        rng: np.random.Generator,
        things: Sequence[Thing],
        place: Background,
        arrange: Arrange = scatter,
        sizes: tuple[float, float] = SIZES,
    ) -> Shot:
        """An image of `things`, all to be seen, at `place`.

        After many attempts they are drawn smaller, and need not stand out from a place of their own colour any more.
        Raises VirtueError where they do not fit even then.
        """
        for attempt in range(2 * ATTEMPTS):
            if attempt == ATTEMPTS:
                sizes = (sizes[0] * SMALLER, sizes[1] * SMALLER)
            cutouts = [draw_cutout(rng, thing, self.side, sizes) for thing in things]
            boxes = arrange(rng, [cutout.size for cutout in cutouts], self.side)
            if boxes is None:
                continue
            background = crop_background(rng, self._photograph(rng, place).image, self.side)
            image, owners = paste(rng, background, cutouts, boxes)
            regions = visible_regions(owners, cutouts)
            if regions is not None and (
                attempt >= ATTEMPTS or all(stands_out(image, background, region) for region in regions)
            ):
                return Shot(image, regions)
        raise VirtueError(
            f"{len(things)} things do not fit an image of {self.side} pixels in {2 * ATTEMPTS} attempts: choose another"
            " --size"
        )

    def _photograph(self, rng: np.random.Generator, place: Background) -> Photograph:
        photographs = place.shown_in(self.photographs)
        return photographs[int(rng.integers(len(photographs)))]


def object_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """A single object, to be named."""
    things = studio.draw_things(rng, 20)
    shot = studio.shoot(rng, things[:1], one_of(rng, studio.library.places), sizes=SINGLE)
    return single(shot, f"{IMAGE}Identify the object shown in the image\n", [thing.name for thing in things])


def scene_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """The place behind two objects, to be named."""
    places = studio.draw_places(rng, 10)
    shot = studio.shoot(rng, studio.draw_things(rng, 2), places[0])
    return single(shot, f"{IMAGE}Identify the scene shown in the image\n", [place.phrase for place in places])


def kind_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Three objects, one of the category that is asked for; all candidates are of that category, so that the question
    tells nothing.
    """
    categories, count = large_categories(studio.things, 10)
    category = one_of(rng, categories)
    things = studio.draw_things(rng, count, among=[thing for thing in studio.things if thing.category == category])
    others = studio.draw_things(rng, 2, things, [thing for thing in studio.things if thing.category != category])
    shot = studio.shoot(rng, [things[0], *others], one_of(rng, studio.library.places))
    return single(
        shot, f"{QUESTION}What {ASKED.get(category, category)} is in the picture?\n", [thing.name for thing in things]
    )


def corner_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Four objects, one in each quarter of the image, asked for by the quarter; six others are candidates, too."""
    things = studio.draw_things(rng, 10)
    shot = studio.shoot(rng, things[:4], one_of(rng, studio.library.places), quarters)
    names = [thing.name for thing in things]
    questions = [
        Question(
            f"{QUESTION}What is in the {quarter} of the picture?\n",
            "scene",
            answers(rng, [Answer(name) for name in names], place),
        )
        for place, quarter in enumerate(QUARTERS)
    ]
    return Group({"scene": shot.image}, tuple(questions))


def caption_i2t_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Twelve images, each to be given its caption."""
    captions, images = captioned(rng, studio)
    candidates = [Answer(caption) for caption in captions]
    text = f"{IMAGE}Find an image caption describing the given everyday image.\n"
    return Group(
        images, tuple(Question(text, name, answers(rng, candidates, place)) for place, name in enumerate(images))
    )


def caption_t2i_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Twelve captions, each to be given its image."""
    captions, images = captioned(rng, studio)
    candidates = [Answer(f"{IMAGE}Represent the given image.", name) for name in images]
    text = "Find me an everyday image that matches the given caption: {}.\n"
    return Group(
        images,
        tuple(
            Question(text.format(caption), "", answers(rng, candidates, place))
            for place, caption in enumerate(captions)
        ),
    )


def grounding_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Four images of the same four objects: an object's crop is to be found by its name among all sixteen."""
    things, text = (
        studio.draw_things(rng, 4),
        f'{IMAGE}Select the portion of the image that isolates the object labeled as "{{}}".\n',
    )
    shots = [studio.shoot(rng, things, place) for place in studio.draw_places(rng, 4)]
    return crops(rng, shots, [[text.format(thing.name) for thing in things] for _ in shots])


def refer_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """The same by an expression that names another object of the image and where it is; who is beside whom differs
    between the images.
    """
    things, text = (
        studio.draw_things(rng, 4),
        f'{IMAGE}Select the portion of the image that follows the language expressions. "{{}}"\n',
    )
    shots, texts = [], []
    for place in studio.draw_places(rng, 4):
        cast = shuffled(rng, things)
        shot, expressions = refer(rng, studio, cast, place)
        order = [cast.index(thing) for thing in things]
        shots.append(Shot(shot.image, [shot.regions[index] for index in order]))
        texts.append([text.format(expressions[index]) for index in order])
    return crops(rng, shots, texts)


def refer(rng: np.random.Generator, studio: Studio, cast: Sequence[Thing], place: Background) -> tuple[Shot, list[str]]:
    """An image of four things and a true expression for each: the first two and the last two refer to each other."""
    for _ in range(ATTEMPTS):
        shot = studio.shoot(rng, cast, place, related)
        found = [relation_between(shot.regions[index].box, shot.regions[(index + 2) % 4].box) for index in range(4)]
        if None not in found:
            pairs = [
                (thing, relation, cast[(index + 2) % 4])
                for index, (thing, relation) in enumerate(zip(cast, found, strict=True))
            ]
            return shot, [f"the {thing.name} {relation} {with_article(other.name)}" for thing, relation, other in pairs]
    raise VirtueError(
        f"no clear relations in an image of {studio.side} pixels in {2 * ATTEMPTS} attempts: choose another --size"
    )


@dataclass(frozen=True)
class MMEBTask:
    """One task. rows: of a group. draw: makes a group; `about` says of what."""

    name: str
    meta_task: str
    rows: int
    draw: Callable[[np.random.Generator, Studio], Group]
    about: str


TASKS = (
    MMEBTask("ObjectMini", "classification", 1, object_mini, "one object on a photograph, to be named among 20 names"),
    MMEBTask(
        "SceneMini",
        "classification",
        1,
        scene_mini,
        "the place behind two objects, to be named among 10 phrases (8 for drawn shapes)",
    ),
    MMEBTask(
        "KindMini",
        "vqa",
        1,
        kind_mini,
        "what animal (food, ...) is in the image, among 10 of that category (6 for drawn shapes)",
    ),
    MMEBTask(
        "CornerMini", "vqa", 4, corner_mini, "what is in a quarter of the image, among the 4 objects shown and 6 others"
    ),
    MMEBTask(
        "CaptionMini_i2t", "retrieval", 12, caption_i2t_mini, "an image's caption (two objects and the place) among 12"
    ),
    MMEBTask("CaptionMini_t2i", "retrieval", 12, caption_t2i_mini, "a caption's image among 12"),
    MMEBTask(
        "GroundingMini",
        "grounding",
        16,
        grounding_mini,
        "a named object's crop among 16: 4 objects of 4 images, the same objects in each",
    ),
    MMEBTask("ReferMini", "grounding", 16, refer_mini, "the same by an expression as in RefCOCO"),
)

NOTES = (
    (
        "MMEB's columns, instructions and meta-tasks, but composed images, few names and short lists: numbers on them"
        " cannot be compared with MMEB's."
    ),
    (
        "Objects are of training in both splits, the tests' images are new: on test photographs where a phrase has"
        " them, see notes of the scenes."
    ),
    (
        "Each candidate is as often right as any other, so candidates alone are at chance. The text alone is at chance,"
        " too, but in two meta-tasks: in grounding it names the object, as in MMEB, which leaves 4 of the 16 crops; in"
        " CaptionMini_t2i it is the whole query."
    ),
)


def captioned(rng: np.random.Generator, studio: Studio) -> tuple[list[str], dict[str, Image.Image]]:
    """Twelve different captions of two of six things at one of three places, and an image of each by name."""
    things, places = studio.draw_things(rng, 6), studio.draw_places(rng, 3)
    pairs = [(first, second) for first in range(6) for second in range(first)]
    captions, images = [], {}
    for number, index in enumerate(rng.permutation(len(pairs) * len(places))[:12]):
        pair = shuffled(rng, [things[member] for member in pairs[index // len(places)]])
        place = places[index % len(places)]
        captions.append(f"{with_article(pair[0].name)} and {with_article(pair[1].name)}, {place.phrase}")
        images[f"scene{number:02d}"] = studio.shoot(rng, pair, place).image
    return captions, images


def crops(rng: np.random.Generator, shots: Sequence[Shot], texts: Sequence[Sequence[str]]) -> Group:
    """A row for each thing of each shot, whose candidates are the crops of all things of all shots; `texts` are the
    queries.
    """
    images, candidates = {}, []
    for number, shot in enumerate(shots):
        images[f"scene{number}"] = shot.image
        for index, region in enumerate(shot.regions):
            images[f"scene{number}_crop{index}"] = cropped(shot.image, region)
            candidates.append(
                Answer(f"{IMAGE}Represent the given cropped image of the object", f"scene{number}_crop{index}")
            )
    rows = [(number, text) for number, queries in enumerate(texts) for text in queries]
    return Group(
        images,
        tuple(
            Question(text, f"scene{number}", answers(rng, candidates, place))
            for place, (number, text) in enumerate(rows)
        ),
    )


def cropped(image: Image.Image, region: Region) -> Image.Image:
    """The image's part that shows the region, with a margin."""
    x, y, width, height = region.box
    across, down = round(MARGIN * width), round(MARGIN * height)
    return image.crop(
        (
            max(0, x - across),
            max(0, y - down),
            min(image.width, x + width + across),
            min(image.height, y + height + down),
        )
    )


def large_categories(things: Sequence[Thing], wanted: int) -> tuple[list[str], int]:
    """The categories with at least `wanted` kinds, or as many as the all_reduce_max has; and that number."""
    kinds: dict[str, set[str]] = {}
    for thing in things:
        kinds.setdefault(thing.category, set()).add(thing.kind)
    count = min(wanted, max(map(len, kinds.values())))
    return [category for category, found in kinds.items() if len(found) >= count], count


def single(shot: Shot, text: str, candidates: Sequence[str]) -> Group:
    """One row whose first candidate is right; the others stand in random order already."""
    return Group({"scene": shot.image}, (Question(text, "scene", tuple(map(Answer, candidates))),))


def answers(rng: np.random.Generator, candidates: Sequence[Answer], right: int) -> tuple[Answer, ...]:
    """The candidates in random order behind the right one."""
    return (candidates[right], *shuffled(rng, [*candidates[:right], *candidates[right + 1 :]]))


def one_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]
