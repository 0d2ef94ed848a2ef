"""Dropout on a CPU in a quarter of the time: one random number of 64 bits decides over four elements."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

LEVELS = 2**16
"""Values of the 16 random bits that decide over an element."""


class QuickDropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU and the same on any other device.

    On a CPU `p` is rounded to a multiple of 1 / 65,536, and what remains is scaled by that. It draws from torch's own
    generator, so that a seed or a restored state drops the same elements again, though others than `nn.Dropout` drops.
    The backward pass needs one byte an element, where torch stores a number.

    Example:
        >>> QuickDropout(0.5).eval()(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the input with elements dropped and the rest scaled; unchanged in eval mode."""
        dropped, scale = self.drop_unscaled(input)
        return dropped if scale == 1 else dropped * scale

    def drop_unscaled(self, input: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], float]:
        """Return the input with dropped elements at zero, and the factor that it is yet to be scaled by.

        A caller that next maps it to fewer elements scales those instead, and saves the larger product.
        """
        dropped_levels = round(self.p * LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < dropped_levels < LEVELS:
            return super().forward(input), 1.0
        mask = draw_keep_mask(input, dropped_levels)
        dropped: Tensor = DropoutMask.apply(input, mask)  # type: ignore[no-untyped-call]
        return dropped, LEVELS / (LEVELS - dropped_levels)


class DropoutMask(torch.autograd.Function):
    """The product with a mask of 0 and 1, cast to the input's type first: only a product of equal types is vectorised.

    Example:
        >>> DropoutMask.apply(torch.tensor([2.0, 3.0]), torch.tensor([0, 1], dtype=torch.int8)).tolist()
        [0.0, 3.0]
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor) -> Tensor:
        """Return the product of input and mask."""
        ctx.save_for_backward(mask)
        return input * mask.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return gradient * mask.to(gradient.dtype), None


def draw_keep_mask(like: Tensor, dropped_levels: int) -> Int8[Tensor, "..."]:
    """Return a random mask in the shape of `like`: 0 with probability `dropped_levels` / 65,536, else 1."""
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # in place, which alone is vectorised
    kept = draws.view(torch.int16)[: like.numel()].view(like.shape).ge_(dropped_levels - LEVELS // 2)
    return kept.to(torch.int8)
