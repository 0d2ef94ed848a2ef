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
"""What a cropped object's image shows beyond its box, as part of the box's sides."""


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


def single_row(shot: Shot, text: str, candidates: Sequence[str]) -> Group:
    """Return one row whose first candidate is right; the others stand in random order already."""
    return Group({"scene": shot.image}, (Question(text, "scene", tuple(map(Answer, candidates))),))


def crop_rows(rng: np.random.Generator, shots: Sequence[Shot], texts: Sequence[Sequence[str]]) -> Group:
    """Return a row for each thing of each shot, whose candidates are the crops of all things of all shots; `texts` are
    the queries.
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
    """Return the image's part that shows the region, with a margin."""
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
