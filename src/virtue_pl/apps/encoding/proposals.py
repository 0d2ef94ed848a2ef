"""Regions that the segmentation model proposes: its masks for a grid of points, the best first, each object once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import label
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.embedder import Embedder
from virtue_pl.metrics.mask_iou import expected_iou
from virtue_pl.preprocessing.segmentations import box_of, encode_mask
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

PROMPTS_PER_BATCH = 64
"""Points that the segmentation model is given at a time."""


@dataclass(frozen=True)
class ProposalOptions:
    """Settings of a search for regions.

    points: along each edge of the grid. overlap: the IoU of two masks from which on they are of one object. quality:
    the least IoU expected of one (`expected_iou`). min_area, max_area: of a mask, as shares of the image. most: regions
    of an image.

    Example:
        >>> ProposalOptions(points=8).points ** 2
        64
    """

    points: int = 16
    overlap: float = 0.7
    quality: float = 0.7
    min_area: float = 0.0005
    max_area: float = 0.95
    most: int = 256


@dataclass(frozen=True, eq=False)
class Proposal:
    """A region that was proposed.

    mask: at the size of its image. box: xyxy around it, normalised. quality: see `expected_iou`.

    Example:
        >>> mask = np.zeros((4, 8), dtype=bool)
        >>> mask[1:3, 2:4] = True
        >>> Proposal(mask, (0.25, 0.25, 0.5, 0.75), 0.9).prompt.boxes
        tensor([[0.2500, 0.2500, 0.5000, 0.7500]])
    """

    mask: Bool[np.ndarray, "height width"]
    box: tuple[float, float, float, float]
    quality: float

    @property
    def prompt(self) -> VisualPrompt:
        """The region as a prompt: its box, as it would be given."""
        return VisualPrompt(boxes=torch.tensor([self.box]))


def propose_regions(embedder: Embedder, item: EmbeddingInput, options: ProposalOptions) -> list[Proposal]:
    """Return the regions that the segmentation model finds in an image, the best first; the towers run once.

    Raises VirtueError where the model predicts no masks.
    """
    points = grid_points(options.points)
    logits = predict_logits(embedder, item, points)
    pieces = torch.stack([piece_at(mask, point) for mask, point in zip(logits > 0, points, strict=True)])
    quality = expected_iou(pieces, logits.sigmoid())
    areas = pieces.flatten(1).float().mean(dim=1)
    fits = (quality >= options.quality) & (areas >= options.min_area) & (areas <= options.max_area)
    order = [row for row in quality.argsort(descending=True, stable=True).tolist() if fits[row]]
    chosen = drop_repeats(pieces, order, options.overlap)[: options.most]
    size = (item.images[0].shape[1], item.images[0].shape[2])
    found = (to_proposal(logits[row], pieces[row], float(quality[row]), size) for row in chosen)
    return [proposal for proposal in found if proposal is not None]


def piece_at(mask: Bool[Tensor, "height width"], point: tuple[float, float]) -> Bool[Tensor, "height width"]:
    """Return the connected piece of a mask that a point lies in; an empty mask where it lies outside.

    Example:
        >>> piece_at(torch.tensor([[True, False, True]]), (0.9, 0.5))
        tensor([[False, False,  True]])
    """
    height, width = mask.shape
    numbers, _ = label(mask.numpy())
    number = numbers[min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)]
    return torch.from_numpy((numbers == number) & (number > 0))


def grid_points(points: int) -> list[tuple[float, float]]:
    """Return the centres of a grid's cells, row by row, normalised.

    Example:
        >>> grid_points(2)
        [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    """
    steps = [(number + 0.5) / points for number in range(points)]
    return [(x, y) for y in steps for x in steps]


@torch.no_grad()
def predict_logits(
    embedder: Embedder, item: EmbeddingInput, points: Sequence[tuple[float, float]]
) -> Float[Tensor, "points height width"]:
    """Return the logits of the mask at each point of an image. Raises VirtueError where no masks are predicted."""
    prompts = [VisualPrompt(points=torch.tensor([point]), point_labels=torch.ones(1).long()) for point in points]
    items = [replace(item, text="", prompt=prompt) for prompt in prompts]
    return torch.cat([segment(embedder, batch) for batch in in_batches(items)])


def in_batches(items: Sequence[EmbeddingInput]) -> Iterator[Sequence[EmbeddingInput]]:
    """Yield inputs in batches of `PROMPTS_PER_BATCH`."""
    yield from (items[start : start + PROMPTS_PER_BATCH] for start in range(0, len(items), PROMPTS_PER_BATCH))


def segment(embedder: Embedder, items: Sequence[EmbeddingInput]) -> Float[Tensor, "items height width"]:
    """Return the mask's logits for each input's prompt, on the CPU. Raises VirtueError where none are predicted."""
    logits = embedder.predict_mask_logits(items)
    if logits is None:
        raise VirtueError("the model predicts no masks, by which regions are proposed: give regions, or another model")
    return logits


def drop_repeats(inside: Bool[Tensor, "masks height width"], order: Sequence[int], overlap: float) -> list[int]:
    """Return those of the masks in `order` that cover none of the masks before it with an IoU of `overlap` or more."""
    flat = inside.flatten(1).float()
    areas = flat.sum(dim=1)
    chosen: list[int] = []
    for row in order:
        shared = flat[chosen] @ flat[row]
        iou = shared / (areas[chosen] + areas[row] - shared).clamp(min=1)
        if not chosen or float(iou.max()) < overlap:
            chosen.append(row)
    return chosen


def to_proposal(
    logits: Float[Tensor, "height width"],
    piece: Bool[Tensor, "height width"],
    quality: float,
    size: tuple[int, int],
) -> Proposal | None:
    """Return a piece of a mask at the size of its image as a proposal; None where nothing of it is left there."""
    alone = torch.where(piece | (logits <= 0), logits, -logits)  # other pieces become outside
    mask = (interpolate(alone[None, None], size=size, mode="bilinear")[0, 0] > 0).numpy()
    return Proposal(mask, box_around(mask), quality) if mask.any() else None


def box_around(mask: Bool[np.ndarray, "height width"]) -> tuple[float, float, float, float]:
    """Return the box around a mask, normalised; all zeros for an empty one.

    Example:
        >>> box_around(np.eye(4, dtype=bool)[:2])
        (0.0, 0.0, 0.5, 1.0)
    """
    height, width = mask.shape
    x1, y1, x2, y2 = box_of(mask) or (0, 0, 0, 0)
    return x1 / width, y1 / height, x2 / width, y2 / height


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> str:
    """Return a mask as COCO's compressed run lengths, in JSON.

    Example:
        >>> run_lengths(np.ones((2, 3), dtype=bool))
        '{"size": [2, 3], "counts": "06"}'
    """
    return json.dumps(encode_mask(mask))
