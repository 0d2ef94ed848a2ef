"""Mask losses for promptable segmentation.

One value a mask, so that the caller can weigh masks of different prompts; targets may be soft (a pixel's covered
share).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def focal_loss(
    logits: Float[Tensor, "masks height width"], targets: Float[Tensor, "masks height width"], gamma: float = 2.0
) -> Float[Tensor, " masks"]:
    """Return each mask's focal loss, the mean of |y - p|^gamma CE(p, y): pixels that are already right count little.

    Lin et al. 2017, "Focal loss for dense object detection", eq. 4, without the class weight alpha (a prompted object
    is not rare the way a detector's foreground is). |y - p| is 1 - p_t for y in {0, 1}, and still measures the error
    for soft targets. gamma = 0 is plain cross-entropy.
    """
    error = (targets - logits.sigmoid()).abs()
    cross_entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (error**gamma * cross_entropy).flatten(1).mean(dim=1)


def dice_loss(
    logits: Float[Tensor, "masks height width"], targets: Float[Tensor, "masks height width"]
) -> Float[Tensor, " masks"]:
    """Return one minus the Dice overlap (2 |A and B| + 1) / (|A| + |B| + 1) of each predicted and true mask.

    Milletari et al. 2016, "V-Net", with plain sums in the denominator; the + 1 defines it for empty masks.
    """
    predicted, expected = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = 2 * (predicted * expected).sum(dim=1)
    return 1 - (overlap + 1) / (predicted.sum(dim=1) + expected.sum(dim=1) + 1)
