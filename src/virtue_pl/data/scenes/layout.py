"""Where things stand: two targets, a reference for each, and bystanders, so that a target's box says nothing about its
relation.

Both targets are placed first. Then references are sought for *every one* of the sixteen pairs of relations; if one pair
finds no
room, the targets move. Only when all sixteen are there is one of them drawn, so each target's relation is uniform given
both
targets' boxes, exactly. Pixels, origin top-left, boxes as x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

RELATIONS = ("to the left of", "to the right of", "above", "below")

QUARTERS = ("upper left", "upper right", "lower left", "lower right")

CLEARLY = 1.8
"""How many times farther apart the centres are along a relation's axis than across it."""
OVERLAP = 0.04
"""Largest part of the smaller of two boxes that the other may cover."""
TARGET_TRIES, PAIR_TRIES, GRID = 60, 24, 20


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Boxes in the order of the sizes given: two targets, their two references, then the bystanders that found room."""

    boxes: tuple[Box, ...]
    relations: tuple[str, str]


def relation_between(box: Sequence[float], reference: Sequence[float]) -> str | None:
    """What `box` (x, y, width, height) is of `reference`; None unless clear along one axis and apart on it."""
    grid = np.asarray([reference], dtype=float)
    for relation in RELATIONS:
        if _holds(Box(*box), grid, relation)[0]:
            return relation
    return None


def draw_layout(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], side: int) -> Layout | None:
    """A layout of things of the given (width, height), or None if their sizes leave no room for some relation."""
    targets, references = sizes[:2], sizes[2:4]
    for _ in range(TARGET_TRIES):
        placed = _place_targets(rng, targets, references, side)
        if placed is None:
            continue
        pairs = _all_pairs(rng, placed, references, side)
        if pairs is None:
            continue
        chosen = int(rng.integers(len(pairs)))
        boxes = [*placed, *pairs[chosen]]
        for size in sizes[4:]:
            boxes += _bystander(rng, boxes, size, side)
        return Layout(tuple(boxes), (RELATIONS[chosen // 4], RELATIONS[chosen % 4]))
    return None


def scatter(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], side: int) -> tuple[Box, ...] | None:
    """Boxes anywhere, apart from each other; None if one finds no room."""
    boxes: list[Box] = []
    for size in sizes:
        boxes += _bystander(rng, boxes, size, side)
    return tuple(boxes) if len(boxes) == len(sizes) else None


def quarters(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], side: int) -> tuple[Box, ...]:
    """Four boxes, each within its quarter of the image, in the order of `QUARTERS`."""
    half = side / 2
    return tuple(
        Box(
            half * (place % 2) + rng.uniform(0, half - width),
            half * (place // 2) + rng.uniform(0, half - height),
            width,
            height,
        )
        for place, (width, height) in enumerate(sizes)
    )


def related(rng: np.random.Generator, sizes: Sequence[tuple[float, float]], side: int) -> tuple[Box, ...] | None:
    """The boxes of `draw_layout`: the first two each have a clear relation to one of the next two."""
    layout = draw_layout(rng, sizes, side)
    return None if layout is None else layout.boxes


def _place_targets(
    rng: np.random.Generator, sizes: Sequence[tuple[float, float]], references: Sequence[tuple[float, float]], side: int
) -> tuple[Box, Box] | None:
    """Both targets where their references fit on every side."""
    boxes = []
    for (width, height), (beside, over) in zip(sizes, references, strict=True):
        if width + 2 * beside > side or height + 2 * over > side:
            return None
        boxes.append(
            Box(rng.uniform(beside, side - beside - width), rng.uniform(over, side - over - height), width, height)
        )
    first, second = boxes
    return (first, second) if _apart(first, _array([second]))[0] else None


def _all_pairs(
    rng: np.random.Generator, targets: tuple[Box, Box], sizes: Sequence[tuple[float, float]], side: int
) -> list[tuple[Box, Box]] | None:
    """References for each of the sixteen pairs of relations (the second target's changes fastest), or None if one has
    no room.
    """
    options: list[list[Float[np.ndarray, "places 4"]]] = []
    for target, size in zip(targets, sizes, strict=True):
        places = _free(_grid(rng, size, side), targets)
        options.append([places[_holds(target, places, relation)] for relation in RELATIONS])
        if not all(len(option) for option in options[-1]):
            return None
    return _pair_up(
        *(np.stack([places[rng.integers(len(places), size=PAIR_TRIES)] for places in option]) for option in options)
    )


def _pair_up(
    first: Float[np.ndarray, "4 tries 4"], second: Float[np.ndarray, "4 tries 4"]
) -> list[tuple[Box, Box]] | None:
    """For every pair of relations the first try in which both references have room."""
    apart = _separate(first[:, None], second[None])
    if not apart.any(axis=-1).all():
        return None
    tries = apart.argmax(axis=-1)
    return [
        (Box(*first[i, tries[i, j]].tolist()), Box(*second[j, tries[i, j]].tolist()))
        for i in range(4)
        for j in range(4)
    ]


def _bystander(rng: np.random.Generator, boxes: Sequence[Box], size: tuple[float, float], side: int) -> list[Box]:
    places = _free(_grid(rng, size, side), boxes)
    return [Box(*places[rng.integers(len(places))].tolist())] if len(places) else []


def _grid(rng: np.random.Generator, size: tuple[float, float], side: int) -> Float[np.ndarray, "places 4"]:
    """Random places for a box of `size`, spread evenly over the image."""
    width, height = size
    steps = (np.arange(GRID) + rng.random()) / GRID
    x, y = np.meshgrid(steps * (side - width), (np.arange(GRID) + rng.random()) / GRID * (side - height))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, width), np.full(x.size, height)], axis=1)


def _free(places: Float[np.ndarray, "places 4"], boxes: Sequence[Box]) -> Float[np.ndarray, "places 4"]:
    for box in boxes:
        places = places[_apart(box, places)]
    return places


def _array(boxes: Sequence[Box]) -> Float[np.ndarray, "boxes 4"]:
    return np.asarray(boxes, dtype=float)


def _apart(box: Box, others: Float[np.ndarray, "places 4"]) -> Bool[np.ndarray, " places"]:
    return _separate(_array([box]), others)


def _separate(ours: Float[np.ndarray, "*n 4"], theirs: Float[np.ndarray, "*n 4"]) -> Bool[np.ndarray, "*n"]:
    """Whether two boxes share at most `OVERLAP` of the smaller."""
    corner = np.maximum(ours[..., :2], theirs[..., :2])
    opposite = np.minimum(ours[..., :2] + ours[..., 2:], theirs[..., :2] + theirs[..., 2:])
    common = np.maximum(opposite - corner, 0)
    return common[..., 0] * common[..., 1] <= OVERLAP * np.minimum(
        ours[..., 2] * ours[..., 3], theirs[..., 2] * theirs[..., 3]
    )


def _holds(target: Box, references: Float[np.ndarray, "places 4"], relation: str) -> Bool[np.ndarray, " places"]:
    """Whether the target is clearly `relation` each reference."""
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
