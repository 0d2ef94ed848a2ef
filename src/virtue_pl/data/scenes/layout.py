"""The layout of a scene, drawn so that the boxes of the two targets tell nothing of their relations to references.

Both targets are placed first. Then references are sought for *every one* of the sixteen pairs of relations; if one pair
finds no room, the targets move. Only when all sixteen exist, one of them is drawn, so each target's relation is exactly
uniform given both targets' boxes. Pixels, origin top-left, boxes as x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

RELATIONS = ("to the left of", "to the right of", "above", "below")

QUARTERS = ("upper left", "upper right", "lower left", "lower right")
"""Quarters of an image, in the order of `quarter_boxes`."""

CLEARLY = 1.8
"""How many times farther apart the centres are along a relation's axis than across it."""
OVERLAP = 0.04
"""Largest part of the smaller of two boxes that the other may cover."""
TARGET_TRIES, PAIR_TRIES, GRID = 60, 24, 20


class Box(NamedTuple):
    """A box in pixels.

    Example:
        >>> Box(x=10, y=20, width=30, height=40).width
        30
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """The boxes of a scene, in the order of the sizes given, and the targets' relations.

    Example:
        >>> layout = draw_layout(np.random.default_rng(0), [(40, 40)] * 5, image_size=256)
        >>> relation_between(layout.boxes[0], layout.boxes[2]) == layout.relations[0]
        True
    """

    boxes: tuple[Box, ...]
    """Two targets, their two references, then the bystanders that found room."""
    relations: tuple[str, str]
    """The relation of each target to its reference."""


def relation_between(box: Sequence[float], reference: Sequence[float]) -> str | None:
    """Return the relation of `box` (x, y, width, height) to `reference`.

    None unless it is clear along one axis, and the boxes are apart on it.
    """
    grid = np.asarray([reference], dtype=float)
    for relation in RELATIONS:
        if _holds(Box(*box), grid, relation)[0]:
            return relation
    return None


def draw_layout(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], image_size: int) -> Layout | None:
    """Return a layout of things of the given (width, height) in an image of `image_size` pixels a side.

    None if their sizes leave no room for some relation.
    """
    targets, references = sizes[:2], sizes[2:4]
    for _ in range(TARGET_TRIES):
        placed = _draw_targets(rng, targets, references, image_size)
        if placed is None:
            continue
        pairs = _all_pairs(rng, placed, references, image_size)
        if pairs is None:
            continue
        chosen = int(rng.integers(len(pairs)))
        boxes = [*placed, *pairs[chosen]]
        for size in sizes[4:]:
            boxes += _bystander(rng, boxes, size, image_size)
        return Layout(tuple(boxes), (RELATIONS[chosen // 4], RELATIONS[chosen % 4]))
    return None


def scatter(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], image_size: int) -> tuple[Box, ...] | None:
    """Return boxes anywhere, apart from each other; None if one finds no room."""
    boxes: list[Box] = []
    for size in sizes:
        boxes += _bystander(rng, boxes, size, image_size)
    return tuple(boxes) if len(boxes) == len(sizes) else None


def quarter_boxes(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], image_size: int) -> tuple[Box, ...]:
    """Return four boxes, each within its quarter of the image, in the order of `QUARTERS`."""
    half = image_size / 2
    return tuple(
        Box(
            half * (index % 2) + rng.uniform(0, half - width),
            half * (index // 2) + rng.uniform(0, half - height),
            width,
            height,
        )
        for index, (width, height) in enumerate(sizes)
    )


def related_boxes(
    rng: np.random.Generator, sizes: Sequence[tuple[float, float]], image_size: int
) -> tuple[Box, ...] | None:
    """Return the boxes of `draw_layout`: the first two each have a clear relation to one of the next two."""
    layout = draw_layout(rng, sizes, image_size)
    return None if layout is None else layout.boxes


def _draw_targets(
    rng: np.random.Generator,
    sizes: Sequence[tuple[float, float]],
    references: Sequence[tuple[float, float]],
    image_size: int,
) -> tuple[Box, Box] | None:
    """Return both targets where their references fit on every side."""
    boxes = []
    for (width, height), (beside, over) in zip(sizes, references, strict=True):
        if width + 2 * beside > image_size or height + 2 * over > image_size:
            return None
        boxes.append(
            Box(
                rng.uniform(beside, image_size - beside - width),
                rng.uniform(over, image_size - over - height),
                width,
                height,
            )
        )
    first, second = boxes
    return (first, second) if _apart(first, _array([second]))[0] else None


def _all_pairs(
    rng: np.random.Generator, targets: tuple[Box, Box], sizes: Sequence[tuple[float, float]], image_size: int
) -> list[tuple[Box, Box]] | None:
    """Return references for each of the sixteen pairs of relations (the second target's changes fastest).

    None if one has no room.
    """
    options: list[list[Float[np.ndarray, "boxes 4"]]] = []
    for target, size in zip(targets, sizes, strict=True):
        free = _free_boxes(_grid(rng, size, image_size), targets)
        options.append([free[_holds(target, free, relation)] for relation in RELATIONS])
        if not all(len(option) for option in options[-1]):
            return None
    return _pair_up(
        *(np.stack([free[rng.integers(len(free), size=PAIR_TRIES)] for free in option]) for option in options)
    )


def _pair_up(
    first: Float[np.ndarray, "4 tries 4"], second: Float[np.ndarray, "4 tries 4"]
) -> list[tuple[Box, Box]] | None:
    """Return for every pair of relations the first try in which both references have room; None where one has none."""
    apart = _separate(first[:, None], second[None])
    if not apart.any(axis=-1).all():
        return None
    tries = apart.argmax(axis=-1)
    return [
        (Box(*first[i, tries[i, j]].tolist()), Box(*second[j, tries[i, j]].tolist()))
        for i in range(4)
        for j in range(4)
    ]


def _bystander(rng: np.random.Generator, boxes: Sequence[Box], size: tuple[float, float], image_size: int) -> list[Box]:
    free = _free_boxes(_grid(rng, size, image_size), boxes)
    return [Box(*free[rng.integers(len(free))].tolist())] if len(free) else []


def _grid(rng: np.random.Generator, size: tuple[float, float], image_size: int) -> Float[np.ndarray, "boxes 4"]:
    """Return random boxes of `size`, spread evenly over the image."""
    width, height = size
    steps = (np.arange(GRID) + rng.random()) / GRID
    x, y = np.meshgrid(steps * (image_size - width), (np.arange(GRID) + rng.random()) / GRID * (image_size - height))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, width), np.full(x.size, height)], axis=1)


def _free_boxes(free: Float[np.ndarray, "boxes 4"], boxes: Sequence[Box]) -> Float[np.ndarray, "boxes 4"]:
    for box in boxes:
        free = free[_apart(box, free)]
    return free


def _array(boxes: Sequence[Box]) -> Float[np.ndarray, "boxes 4"]:
    return np.asarray(boxes, dtype=float)


def _apart(box: Box, others: Float[np.ndarray, "boxes 4"]) -> Bool[np.ndarray, " boxes"]:
    return _separate(_array([box]), others)


def _separate(ours: Float[np.ndarray, "*n 4"], theirs: Float[np.ndarray, "*n 4"]) -> Bool[np.ndarray, "*n"]:
    """Return whether two boxes share at most `OVERLAP` of the smaller."""
    corner = np.maximum(ours[..., :2], theirs[..., :2])
    opposite = np.minimum(ours[..., :2] + ours[..., 2:], theirs[..., :2] + theirs[..., 2:])
    common = np.maximum(opposite - corner, 0)
    return common[..., 0] * common[..., 1] <= OVERLAP * np.minimum(
        ours[..., 2] * ours[..., 3], theirs[..., 2] * theirs[..., 3]
    )


def _holds(target: Box, references: Float[np.ndarray, "boxes 4"], relation: str) -> Bool[np.ndarray, " boxes"]:
    """Return whether the target is clearly `relation` each reference."""
    box = np.asarray(target, dtype=float)
    centres = references[:, :2] + references[:, 2:] / 2 - (box[:2] + box[2:] / 2)
    axis, sign = (
        (0, 1)
        if relation == "to the left of"
        else (0, -1)
        if relation == "to the right of"
        else (1, 1)
        if relation == "above"
        else (1, -1)
    )
    along, across = sign * centres[:, axis], np.abs(centres[:, 1 - axis])
    touching = (references[:, 2 + axis] + box[2 + axis]) / 2
    slack = 0.1 * np.minimum(references[:, 2 + axis], box[2 + axis])
    return (along >= CLEARLY * across) & (along >= touching - slack)
