"""Intersection over union of predicted and exact masks, averaged over samples and ranks."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics import Metric


def mask_iou(
    predicted: Bool[Tensor, "masks height width"], targets: Bool[Tensor, "masks height width"]
) -> Float[Tensor, " masks"]:
    """Return the intersection over union of each pair of masks; 1 for two empty ones."""
    intersection = (predicted & targets).flatten(1).sum(dim=1)
    union = (predicted | targets).flatten(1).sum(dim=1)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def expected_iou(
    inside: Bool[Tensor, "masks height width"], probability: Float[Tensor, "masks height width"]
) -> Float[Tensor, " masks"]:
    """Return the IoU that a model expects of each mask, by its own probability that a pixel is of the object.

    It is the expected intersection over the expected union with an object whose pixels are drawn by it; 0 for an empty
    mask.

    Example:
        >>> expected_iou(torch.tensor([[[True, False]]]), torch.tensor([[[0.9, 0.2]]]))
        tensor([0.7500])
    """
    inside, probability = inside.flatten(1), probability.flatten(1)
    area = inside.float().sum(dim=1)
    intersection = (probability * inside).sum(dim=1)
    outside = (probability * ~inside).sum(dim=1)
    return intersection / (area + outside).clamp(min=1e-6)


class MaskIoU(Metric):
    """The mean IoU of predicted masks with the exact ones, each mask counting the same whatever its size.

    Logits of another resolution than the targets' are resized to it bilinearly and cut at 0: it is the IoU of full-size
    masks. NaN before the first mask.

    Example:
        >>> metric = MaskIoU()
        >>> metric.update(torch.tensor([[[4.0, -4.0], [4.0, -4.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.3333)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "masks rows columns"], targets: Float[Tensor, "masks height width"]) -> None:
        """Add masks. logits: > 0 is inside. targets: > 0.5 is inside."""
        full = interpolate(logits[:, None].float(), size=targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        self.total += mask_iou(full > 0, targets > 0.5).double().sum()
        self.count += len(targets)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over all masks of all ranks."""
        return (self.total / self.count).float()
