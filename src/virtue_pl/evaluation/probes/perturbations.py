"""Perturbed prompts, as imprecise users give them.

Boxes are shifted or of the wrong size, clicks lie beside the object, masks are too small, too large or half hidden. The
list follows questions of VIRTUE's readers (arXiv 2510.00523). A perturbation at level `neutral` does not change the
prompt, and the same generator state gives the same direction at every level, so that a curve shows the level alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from virtue_pl.preprocessing.prompts import erode
from virtue_pl.types import VisualPrompt

Perturb = Callable[[VisualPrompt, float, tuple[int, int], torch.Generator], VisualPrompt]
"""(prompt, level, (height, width) of the image, generator) -> the perturbed prompt"""


class Perturbation(NamedTuple):
    """Perturbation of prompts of one kind, at several levels.

    mode: the kind of prompt, "box", "point" or "mask". unit: description of the levels. perturb: returns a changed
    prompt. neutral: the level that changes nothing.

    Example:
        >>> prompt = VisualPrompt(boxes=torch.tensor([[0.2, 0.2, 0.6, 0.6]]))
        >>> scale = PERTURBATIONS["box_scale"]
        >>> scale.perturb(prompt, 1.5, (480, 640), torch.Generator()).boxes
        tensor([[0.1000, 0.1000, 0.7000, 0.7000]])
    """

    mode: str
    unit: str
    levels: tuple[float, ...]
    perturb: Perturb
    neutral: float = 0.0


def jitter_box(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Move every edge of each box by up to `level` of the box's extent, in or out, but not out of the image."""
    draws = 2 * torch.rand(len(prompt.boxes), 4, generator=generator) - 1
    extents = (prompt.boxes[:, 2:] - prompt.boxes[:, :2]).repeat(1, 2)
    return replace(prompt, boxes=clamp_boxes(prompt.boxes + level * draws * extents))


def scale_box(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Multiply each box's width and height by `level` around its centre; what leaves the image is cut off."""
    centres, halves = (prompt.boxes[:, :2] + prompt.boxes[:, 2:]) / 2, (prompt.boxes[:, 2:] - prompt.boxes[:, :2]) / 2
    return replace(prompt, boxes=clamp_boxes(torch.cat([centres - level * halves, centres + level * halves], dim=1)))


def clamp_boxes(boxes: Float[Tensor, "boxes 4"]) -> Float[Tensor, "boxes 4"]:
    """Return the boxes (normalised, xyxy) clamped to the image, their corners in order."""
    corners = boxes.reshape(-1, 2, 2).sort(dim=1).values
    return corners.reshape(-1, 4).clamp(0, 1)


def offset_click(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Move each point by `level` pixels of the image in any direction; it stays in the image."""
    angles = 2 * math.pi * torch.rand(len(prompt.points), generator=generator)
    steps = torch.stack([angles.cos() / size[1], angles.sin() / size[0]], dim=1)
    return replace(prompt, points=(prompt.points + level * steps).clamp(0, 1))


def erode_mask(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Erode each mask by `level` of its pixels; the innermost part of a thin one stays."""
    return replace(prompt, masks=torch.stack([erode_at_most(mask, round(level)) for mask in prompt.masks]))


def erode_at_most(mask: Bool[Tensor, "height width"], radius: int) -> Bool[Tensor, "height width"]:
    """Return the mask eroded by the largest radius up to `radius` pixels that leaves something of it."""
    while radius > 0:
        inner = erode(mask, radius)
        if inner.any():
            return inner
        radius -= 1
    return mask


def dilate_mask(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Dilate each mask by `level` of its pixels."""
    return replace(prompt, masks=torch.stack([~erode(~mask, round(level)) if level else mask for mask in prompt.masks]))


def cover_mask(prompt: VisualPrompt, level: float, size: tuple[int, int], generator: torch.Generator) -> VisualPrompt:
    """Hide the share `level` of each mask behind a straight edge in any direction; at least one pixel stays."""
    angles = 2 * math.pi * torch.rand(len(prompt.masks), generator=generator)
    return replace(
        prompt,
        masks=torch.stack(
            [hide_share(mask, level, float(angle)) for mask, angle in zip(prompt.masks, angles, strict=True)]
        ),
    )


def hide_share(mask: Bool[Tensor, "height width"], share: float, angle: float) -> Bool[Tensor, "height width"]:
    """Return the mask without the share of its pixels that lies farthest in the direction of `angle`, in radians."""
    pixels = mask.nonzero()
    depth = pixels.double() @ torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
    visible_pixels = pixels[depth.argsort(stable=True)[: max(1, len(pixels) - round(share * len(pixels)))]]
    visible = torch.zeros_like(mask)
    visible[visible_pixels[:, 0], visible_pixels[:, 1]] = True
    return visible


PERTURBATIONS: dict[str, Perturbation] = {
    "box_jitter": Perturbation(
        "box", "edges moved, at most, of the box's side", (0, 0.05, 0.1, 0.2, 0.3, 0.5), jitter_box
    ),
    "box_scale": Perturbation(
        "box", "side of the box, times the right one", (0.5, 0.75, 1, 1.25, 1.5, 2), scale_box, neutral=1.0
    ),
    "click_offset": Perturbation("point", "click moved, in pixels", (0, 1, 2, 5, 10, 20, 40), offset_click),
    "mask_erosion": Perturbation("mask", "mask eroded, in pixels", (0, 1, 2, 4, 8, 16), erode_mask),
    "mask_dilation": Perturbation("mask", "mask dilated, in pixels", (0, 1, 2, 4, 8, 16), dilate_mask),
    "mask_cover": Perturbation("mask", "share of the mask hidden", (0, 0.25, 0.5, 0.75), cover_mask),
}
