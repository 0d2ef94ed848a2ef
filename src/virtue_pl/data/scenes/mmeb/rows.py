"""Rows of MMEB-mini before they are written: queries, candidates and their images by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from virtue_pl.data.scenes.mmeb.studio import Shot, shuffle
from virtue_pl.data.scenes.staging import Region

IMAGE = "<|image_1|>\n"
MARGIN = 0.1
"""Margin around the box of a cropped object, as a share of the box's width and height."""


@dataclass(frozen=True)
class Answer:
    """A candidate: a text, an image, or both.

    Example:
        >>> Answer("a fox").image
        ''
    """

    text: str
    image: str = ""
    """The image's name in the group, or "" for none."""


@dataclass(frozen=True)
class Question:
    """A row: a query, and its candidates, the right one first.

    Example:
        >>> Question("Identify the object", "scene", (Answer("a fox"), Answer("an owl"))).answers[0].text
        'a fox'
    """

    text: str
    image: str
    """The name of the query's image in the group, or "" for none."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that belong together, and all their images by name.

    Example:
        >>> group = Group({"scene": Image.new("RGB", (8, 8))}, (Question("Name it", "scene", (Answer("fox"),)),))
        >>> len(group.questions)
        1
    """

    images: dict[str, Image.Image]
    questions: tuple[Question, ...]


def single_row(shot: Shot, text: str, candidates: Sequence[str]) -> Group:
    """Return one row whose first candidate is right; the others are in random order already."""
    return Group({"scene": shot.image}, (Question(text, "scene", tuple(map(Answer, candidates))),))


def crop_rows(rng: np.random.Generator, shots: Sequence[Shot], texts: Sequence[Sequence[str]]) -> Group:
    """Return a row for each thing of each shot, whose candidates are the crops of all things of all shots.

    `texts` are the queries, for each shot one for each of its things.
    """
    images, candidates = {}, []
    for number, shot in enumerate(shots):
        images[f"scene{number}"] = shot.image
        for index, region in enumerate(shot.regions):
            images[f"scene{number}_crop{index}"] = crop_region(shot.image, region)
            candidates.append(
                Answer(f"{IMAGE}Represent the given cropped image of the object", f"scene{number}_crop{index}")
            )
    rows = [(number, text) for number, queries in enumerate(texts) for text in queries]
    return Group(
        images,
        tuple(
            Question(text, f"scene{number}", order_answers(rng, candidates, index))
            for index, (number, text) in enumerate(rows)
        ),
    )


def crop_region(image: Image.Image, region: Region) -> Image.Image:
    """Return the image's part with the region, with a margin."""
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


def order_answers(rng: np.random.Generator, candidates: Sequence[Answer], right: int) -> tuple[Answer, ...]:
    """Return the candidates in random order behind the right one."""
    return (candidates[right], *shuffle(rng, [*candidates[:right], *candidates[right + 1 :]]))
