"""Geometry of visual prompts: how a region is pointed at, and how prompts move with their image."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from virtue_pl.types import Region, VirtueError, VisualPrompt

PROMPT_MODES = ("box", "point", "mask", "none")


def prompt_region(region: Region, mode: str, generator: torch.Generator | None = None) -> VisualPrompt:
    """Points at `region` as a person would: with its box, one click well inside it, its mask, or not at all.

    `generator` picks the click; the same state gives the same click. Raises VirtueError for a mode that the region
    lacks data for.
    """
    if mode == "box":
        return VisualPrompt(boxes=region.box[None].float())
    if mode == "point":
        return VisualPrompt(points=click_inside(region, generator)[None], point_labels=torch.ones(1, dtype=torch.long))
    if mode == "mask":
        if region.mask is None:
            raise VirtueError(
                "prompt mode 'mask' needs regions with masks, found a region with a box only: leave 'mask' out of the"
                " prompt modes"
            )
        return VisualPrompt(masks=region.mask[None])
    if mode == "none":
        return VisualPrompt()
    raise VirtueError(f"prompt mode {mode!r}, expected one of {', '.join(PROMPT_MODES)}")


def click_inside(region: Region, generator: torch.Generator | None = None) -> Float[Tensor, "2"]:
    """A random point of the region away from its edge (of its box's inner half, where there is no mask)."""
    if region.mask is None:
        corner, opposite = region.box[:2], region.box[2:]
        return corner + (opposite - corner) * (0.25 + 0.5 * torch.rand(2, generator=generator))
    inner = erode(region.mask, max(1, int(region.mask.sum().item() ** 0.5 / 8)))
    places = (inner if inner.any() else region.mask).nonzero()
    row, column = places[torch.randint(len(places), (1,), generator=generator).item()].tolist()  # type: ignore[index]
    height, width = region.mask.shape
    return torch.tensor([(column + 0.5) / width, (row + 0.5) / height])


def erode(mask: Bool[Tensor, "height width"], radius: int) -> Bool[Tensor, "height width"]:
    """The mask without everything nearer than `radius` pixels to its outside (square neighbourhood)."""
    side = 2 * radius + 1
    outside = max_pool2d((~mask).float()[None, None], (side, 1), stride=1, padding=(radius, 0))
    return max_pool2d(outside, (1, side), stride=1, padding=(0, radius))[0, 0] == 0


def flip_horizontally(prompt: VisualPrompt) -> VisualPrompt:
    """The prompt on the mirrored image."""
    boxes = prompt.boxes[:, [2, 1, 0, 3]].clone()
    boxes[:, [0, 2]] = 1 - boxes[:, [0, 2]]
    points = prompt.points.clone()
    points[:, 0] = 1 - points[:, 0]
    return replace(prompt, boxes=boxes, points=points, masks=prompt.masks.flip(-1))


def box_of_mask(mask: Bool[Tensor, "height width"]) -> Float[Tensor, "4"]:
    """The all_reduce_min box around the mask, xyxy, normalised. Raises VirtueError if the mask is empty."""
    height, width = mask.shape
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        raise VirtueError("the mask is empty, expected at least one pixel inside")
    return torch.tensor(
        [
            columns[0].item() / width,
            rows[0].item() / height,
            (columns[-1].item() + 1) / width,
            (rows[-1].item() + 1) / height,
        ]
    )


def enclosing_box(prompt: VisualPrompt, size: tuple[int, int], point_side: float) -> Float[Tensor, "4"] | None:
    """The all_reduce_min box around all that the prompt means, xyxy, normalised, clipped to the image; None where it
    means nothing.

    size: (height, width) of the image, of which only the ratio matters. An inside point stands for the square around it
    whose
    side is `point_side` of the image's shorter side; an outside point for nothing.
    """
    inside = prompt.points[prompt.point_labels == 1]
    half = inside.new_tensor([min(size) / size[1], min(size) / size[0]]) * point_side / 2
    squares = torch.cat([inside - half, inside + half], dim=1)
    masks = [box_of_mask(mask)[None].to(inside.device) for mask in prompt.masks]
    boxes = torch.cat([prompt.boxes, squares, *masks])
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)]).clamp(0, 1) if len(boxes) else None


def pixel_box(box: Float[Tensor, "4"], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A normalised box in whole pixels of an image of `size` = (height, width), to the nearest edges, at least one
    pixel each way.
    """
    height, width = size
    x1, y1, x2, y2 = box.tolist()
    left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
    return left, top, max(round(x2 * width), left + 1), max(round(y2 * height), top + 1)


def grid_points(side: int) -> VisualPrompt:
    """`side` x `side` inside points at the centres of equal cells, x fastest: what stands in for "no prompt" (the
    paper: side 3).
    """
    if side < 1:
        raise VirtueError(f"grid_side is {side}, expected at least 1 (the paper: 3)")
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return VisualPrompt(
        points=torch.stack([x.flatten(), y.flatten()], dim=1), point_labels=torch.ones(side * side, dtype=torch.long)
    )
