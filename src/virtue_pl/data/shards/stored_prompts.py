"""Inputs of one's own rows as shards store them: several images, regions with points, and prompts on answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.data.shards.records import Row, read_mask, read_region
from virtue_pl.types import DataError, Region, VirtueError, VisualPrompt

POINT_EXTENT = 0.1
"""Side, as a share of the image's shorter one, of the squares around points that give a row without a box its box."""


def image_numbers(stored: Any) -> list[int] | None:
    """Return the numbers of the images of [TEXT, NUMBER, NUMBERS OR NULL]; None where it is something else."""
    if not (isinstance(stored, list) and len(stored) == 2 and isinstance(stored[0], str)):
        return None
    found = stored[1] if isinstance(stored[1], list) else [] if stored[1] is None else [stored[1]]
    return found if all(type(number) is int for number in found) else None


def split_prompts(fields: Mapping[str, Any]) -> tuple[dict[int, Any], dict[str, Any]]:
    """Return the prompts of a row's answers by number, and the row's fields without them.

    An answer with a prompt is stored as [TEXT, NUMBER, PROMPT]; the answers are the target and the negatives, or the
    candidates.
    """
    prompts: dict[int, Any] = {}
    bare = dict(fields)
    number = 0
    for name in ("candidates",) if "candidates" in fields else ("target", "negatives"):
        stored = fields.get(name)
        found = [stored] if name == "target" else stored if isinstance(stored, list) else []
        for item in found:
            if isinstance(item, list) and len(item) == 3:
                prompts[number] = item[2]
            number += 1
        if prompts:
            items = [item[:2] if isinstance(item, list) else item for item in found]
            bare[name] = items[0] if name == "target" else items
    return prompts, bare


def has_region(row: Row) -> bool:
    """Return whether a stored row's query has a region of its image."""
    return row.fields.get("box") is not None or bool(row.fields.get("prompt"))


def first_number(row: Row, stored: Any) -> int:
    """Return the number of the image that a region of a stored input is of. Raises DataError where it has none."""
    numbers = image_numbers(stored)
    if not numbers:
        raise DataError(row.key, "its region is of no image, expected an input with an image")
    return numbers[0]


def read_own_region(row: Row, size: tuple[int, int]) -> Region:
    """Return the region of the query's image, with the points and the several boxes that the row may have.

    A row of points alone has the box around them, for what draws or crops a region. size: (height, width) of the image.
    Raises DataError for one that is impossible.
    """
    given = read_prompt(row, row.fields.get("prompt") or {}, size)
    if row.fields.get("box") is not None:
        return replace(read_region(row, size), given=given)
    return Region(box_around_points(row, given, size), given=given)


def box_around_points(row: Row, prompt: VisualPrompt, size: tuple[int, int]) -> Float[Tensor, "4"]:
    """Return the box around the squares of a prompt's inside points. Raises DataError where there is none."""
    inside = prompt.points[prompt.point_labels == 1]
    if not len(inside):
        raise DataError(row.key, "its region has neither a box nor a point inside")
    return box_of_points(inside, size)


def box_of_points(points: Float[Tensor, "points 2"], size: tuple[int, int]) -> Float[Tensor, "4"]:
    """Return the box around squares at points, which are one or more, within an image of `size` = (height, width)."""
    half = points.new_tensor([min(size) / size[1], min(size) / size[0]]) * POINT_EXTENT / 2
    return torch.cat([points.amin(dim=0) - half, points.amax(dim=0) + half]).clamp(0, 1)


def read_prompt(row: Row, stored: Any, size: tuple[int, int]) -> VisualPrompt:
    """Return a stored prompt: "boxes", "points", "labels" and "mask", in pixels.

    Raises DataError for an impossible one.
    """
    if not isinstance(stored, Mapping):
        raise DataError(row.key, f"prompt {stored!r}, expected boxes, points, labels or a mask")
    mask = stored.get("mask")
    try:
        return VisualPrompt.from_pixels(
            stored.get("boxes") or (),
            stored.get("points") or (),
            stored.get("labels"),
            None if mask is None else read_mask(replace(row, fields={"mask": mask}), size)[None],
            size=size,
        )
    except DataError:
        raise
    except (VirtueError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(row.key, f"impossible prompt: {error}") from error
