"""The eight tasks of MMEB-mini.

Candidates are drawn first, and which of them is right afterwards, each with the same chance: a guess from the
candidates alone is at chance. Where rows share a list of candidates (a group), each is right in exactly one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.captions import with_article
from virtue_pl.data.scenes.layout import QUARTERS, quarter_boxes, related_boxes, relation_between
from virtue_pl.data.scenes.library import Background, Thing
from virtue_pl.data.scenes.mmeb.rows import IMAGE, Answer, Group, Question, crop_rows, order_answers, single_row
from virtue_pl.data.scenes.mmeb.studio import ATTEMPTS, Shot, Studio, choose, shuffle
from virtue_pl.types import VirtueError

QUESTION = f"{IMAGE}Represent the given image with the following question: "
SINGLE = (0.25, 0.4)
"""Size of a thing that is alone, see `staging.SIZES`."""
CATEGORY_NOUNS = {"household": "household object"}
"""Nouns for the categories whose name alone is none."""


def object_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return a row: one object, to be named."""
    things = studio.draw_things(rng, 20)
    shot = studio.shoot(rng, things[:1], choose(rng, studio.library.backgrounds), sizes=SINGLE)
    return single_row(shot, f"{IMAGE}Identify the object shown in the image\n", [thing.name for thing in things])


def scene_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return a row: the background of two objects, to be named."""
    backgrounds = studio.draw_backgrounds(rng, 10)
    shot = studio.shoot(rng, studio.draw_things(rng, 2), backgrounds[0])
    return single_row(
        shot, f"{IMAGE}Identify the scene shown in the image\n", [background.phrase for background in backgrounds]
    )


def kind_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return a row: three objects, one of the category that is asked for.

    All candidates are of that category, so that the question alone tells nothing.
    """
    categories, count = large_categories(studio.things, 10)
    category = choose(rng, categories)
    things = studio.draw_things(rng, count, among=[thing for thing in studio.things if thing.category == category])
    others = studio.draw_things(rng, 2, things, [thing for thing in studio.things if thing.category != category])
    shot = studio.shoot(rng, [things[0], *others], choose(rng, studio.library.backgrounds))
    return single_row(
        shot,
        f"{QUESTION}What {CATEGORY_NOUNS.get(category, category)} is in the picture?\n",
        [thing.name for thing in things],
    )


def corner_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return four rows: four objects, one in each quarter of an image, asked for by the quarter.

    Six other objects are candidates, too.
    """
    things = studio.draw_things(rng, 10)
    shot = studio.shoot(rng, things[:4], choose(rng, studio.library.backgrounds), quarter_boxes)
    names = [thing.name for thing in things]
    questions = [
        Question(
            f"{QUESTION}What is in the {quarter} of the picture?\n",
            "scene",
            order_answers(rng, [Answer(name) for name in names], index),
        )
        for index, quarter in enumerate(QUARTERS)
    ]
    return Group({"scene": shot.image}, tuple(questions))


def caption_i2t_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return twelve rows: images, each to be matched with its caption."""
    captions, images = draw_captions(rng, studio)
    candidates = [Answer(caption) for caption in captions]
    text = f"{IMAGE}Find an image caption describing the given everyday image.\n"
    return Group(
        images, tuple(Question(text, name, order_answers(rng, candidates, index)) for index, name in enumerate(images))
    )


def caption_t2i_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return twelve rows: captions, each to be matched with its image."""
    captions, images = draw_captions(rng, studio)
    candidates = [Answer(f"{IMAGE}Represent the given image.", name) for name in images]
    text = "Find me an everyday image that matches the given caption: {}.\n"
    return Group(
        images,
        tuple(
            Question(text.format(caption), "", order_answers(rng, candidates, index))
            for index, caption in enumerate(captions)
        ),
    )


def grounding_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return sixteen rows: four images of the same four objects.

    An object's crop is to be found by its name, among all sixteen.
    """
    things, text = (
        studio.draw_things(rng, 4),
        f'{IMAGE}Select the portion of the image that isolates the object labeled as "{{}}".\n',
    )
    shots = [studio.shoot(rng, things, background) for background in studio.draw_backgrounds(rng, 4)]
    return crop_rows(rng, shots, [[text.format(thing.name) for thing in things] for _ in shots])


def refer_mini(rng: np.random.Generator, studio: Studio) -> Group:
    """Return sixteen rows: four images of the same four objects, each object found by an expression.

    An expression names another object of the image and their relation; the neighbours differ between the images.
    """
    things, text = (
        studio.draw_things(rng, 4),
        f'{IMAGE}Select the portion of the image that follows the language expressions. "{{}}"\n',
    )
    shots, texts = [], []
    for background in studio.draw_backgrounds(rng, 4):
        cast = shuffle(rng, things)
        shot, expressions = draw_references(rng, studio, cast, background)
        order = [cast.index(thing) for thing in things]
        shots.append(Shot(shot.image, [shot.regions[index] for index in order]))
        texts.append([text.format(expressions[index]) for index in order])
    return crop_rows(rng, shots, texts)


def draw_captions(rng: np.random.Generator, studio: Studio) -> tuple[list[str], dict[str, Image.Image]]:
    """Return twelve different captions, and an image of each by name.

    A caption is of two of six things on one of three backgrounds.
    """
    things, backgrounds = studio.draw_things(rng, 6), studio.draw_backgrounds(rng, 3)
    pairs = [(first, second) for first in range(6) for second in range(first)]
    captions, images = [], {}
    for number, index in enumerate(rng.permutation(len(pairs) * len(backgrounds))[:12]):
        pair = shuffle(rng, [things[member] for member in pairs[index // len(backgrounds)]])
        background = backgrounds[index % len(backgrounds)]
        captions.append(f"{with_article(pair[0].name)} and {with_article(pair[1].name)}, {background.phrase}")
        images[f"scene{number:02d}"] = studio.shoot(rng, pair, background).image
    return captions, images


def draw_references(
    rng: np.random.Generator, studio: Studio, cast: Sequence[Thing], background: Background
) -> tuple[Shot, list[str]]:
    """Return an image of four things, and a true expression for each.

    The first two and the last two refer to each other.
    """
    for _ in range(ATTEMPTS):
        shot = studio.shoot(rng, cast, background, related_boxes)
        found = [relation_between(shot.regions[index].box, shot.regions[(index + 2) % 4].box) for index in range(4)]
        if None not in found:
            pairs = [
                (thing, relation, cast[(index + 2) % 4])
                for index, (thing, relation) in enumerate(zip(cast, found, strict=True))
            ]
            return shot, [f"the {thing.name} {relation} {with_article(other.name)}" for thing, relation, other in pairs]
    raise VirtueError(
        f"no clear relations in an image of {studio.image_size} pixels in {2 * ATTEMPTS} attempts: choose another"
        " --size"
    )


def large_categories(things: Sequence[Thing], wanted: int) -> tuple[list[str], int]:
    """Return the categories with at least `wanted` kinds, or as many as the largest has; and that number."""
    kinds: dict[str, set[str]] = {}
    for thing in things:
        kinds.setdefault(thing.category, set()).add(thing.kind)
    count = min(wanted, max(map(len, kinds.values())))
    return [category for category, found in kinds.items() if len(found) >= count], count


@dataclass(frozen=True)
class MMEBTask:
    """One task of MMEB-mini.

    Example:
        >>> TASKS[0].name, TASKS[0].meta_task
        ('ObjectMini', 'classification')
    """

    name: str
    meta_task: str
    rows: int
    """Rows of a group."""
    draw: Callable[[np.random.Generator, Studio], Group]
    """Returns a group."""
    about: str
    """What a group asks."""


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
