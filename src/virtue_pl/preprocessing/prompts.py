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
    """Return a prompt that points at `region` as a person would: its box, a click well inside it, its mask, or nothing.

    Boxes and points that its annotation gives are taken as they are, and points alone also stand for a box. `generator`
    draws the click; the same state gives the same click. Raises VirtueError for a mode that the region
    lacks data for.
    """
    given, clicks = region.given, VisualPrompt(points=region.given.points, point_labels=region.given.point_labels)
    if mode == "box":
        if not given.is_empty:
            return VisualPrompt(boxes=given.boxes.float()) if len(given.boxes) else clicks
        return VisualPrompt(boxes=region.box[None].float())
    if mode == "point":
        if not clicks.is_empty:
            return clicks
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
    """Return a random point of the region away from its edge: of its box's inner half, where there is no mask."""
    if region.mask is None:
        corner, opposite = region.box[:2], region.box[2:]
        return corner + (opposite - corner) * (0.25 + 0.5 * torch.rand(2, generator=generator))
    inner = erode(region.mask, max(1, int(region.mask.sum().item() ** 0.5 / 8)))
    pixels = (inner if inner.any() else region.mask).nonzero()
    row, column = pixels[torch.randint(len(pixels), (1,), generator=generator).item()].tolist()  # type: ignore[index]
    height, width = region.mask.shape
    return torch.tensor([(column + 0.5) / width, (row + 0.5) / height])


def erode(mask: Bool[Tensor, "height width"], radius: int) -> Bool[Tensor, "height width"]:
    """Return the mask without all pixels nearer than `radius` pixels to its outside (square neighbourhood)."""
    size = 2 * radius + 1
    outside = max_pool2d((~mask).float()[None, None], (size, 1), stride=1, padding=(radius, 0))
    return max_pool2d(outside, (1, size), stride=1, padding=(0, radius))[0, 0] == 0


def flip_horizontally(prompt: VisualPrompt) -> VisualPrompt:
    """Return the prompt for the mirrored image."""
    boxes = prompt.boxes[:, [2, 1, 0, 3]].clone()
    boxes[:, [0, 2]] = 1 - boxes[:, [0, 2]]
    points = prompt.points.clone()
    points[:, 0] = 1 - points[:, 0]
    return replace(prompt, boxes=boxes, points=points, masks=prompt.masks.flip(-1))


def box_of_mask(mask: Bool[Tensor, "height width"]) -> Float[Tensor, "4"]:
    """Return the smallest box around the mask, xyxy, normalised. Raises VirtueError if the mask is empty."""
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
    """Return the smallest box around all that the prompt includes, xyxy, normalised, clipped to the image.

    None for a prompt that includes nothing. An inside point stands for a square around it; outside points do not count.

    Args:
        prompt: boxes, points and masks.
        size: the image's (height, width), of which only the ratio matters.
        point_side: the length of a point's square, as a share of the image's shorter side.
    """
    inside = prompt.points[prompt.point_labels == 1]
    half = inside.new_tensor([min(size) / size[1], min(size) / size[0]]) * point_side / 2
    squares = torch.cat([inside - half, inside + half], dim=1)
    masks = [box_of_mask(mask)[None].to(inside.device) for mask in prompt.masks]
    boxes = torch.cat([prompt.boxes, squares, *masks])
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)]).clamp(0, 1) if len(boxes) else None


def pixel_box(box: Float[Tensor, "4"], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a normalised box in whole pixels of an image of `size` = (height, width), rounded to the nearest edges.

    It has at least one pixel in each direction.
    """
    height, width = size
    x1, y1, x2, y2 = box.tolist()
    left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
    return left, top, max(round(x2 * width), left + 1), max(round(y2 * height), top + 1)


def grid_points(grid_size: int) -> VisualPrompt:
    """Return `grid_size` x `grid_size` inside points at the centres of equal cells, x fastest.

    They stand for "no prompt" (the paper: 3 x 3).
    """
    if grid_size < 1:
        raise VirtueError(f"grid_size is {grid_size}, expected at least 1 (the paper: 3)")
    centres = (torch.arange(grid_size) + 0.5) / grid_size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return VisualPrompt(
        points=torch.stack([x.flatten(), y.flatten()], dim=1), point_labels=torch.ones(grid_size**2, dtype=torch.long)
    )
