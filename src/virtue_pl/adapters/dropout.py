"""Dropout on a CPU in a quarter of its time: torch draws one random number a place, here one of 64 bits decides over
four.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

LEVELS = 2**16
"""Of the 16 random bits that a place has."""


class QuickDropout(nn.Dropout):
    """`nn.Dropout`, which it is on any device but a CPU. There `p` is rounded to a multiple of 1 / 65,536, and what is
    kept is scaled by that.

    It draws from torch's own generator, so that a seed or a restored state gives the same places again; they are others
    than torch's.
    For the backward pass it keeps one byte a place, where torch keeps a number.
    """

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        thinned, stretch = self.thinned(input)
        return thinned if stretch == 1 else thinned * stretch

    def thinned(self, input: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], float]:
        """The input with its dropped places at zero, and what it is yet to be scaled by: whoever makes it smaller first
        saves the larger product.
        """
        lowest = round(self.p * LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < lowest < LEVELS:
            return super().forward(input), 1.0
        thinned: Tensor = DropoutMask.apply(input, kept_places(input, lowest))  # type: ignore[no-untyped-call]
        return thinned, LEVELS / (LEVELS - lowest)


class DropoutMask(torch.autograd.Function):
    """The product with 0 or 1 of every place. One of equal types is vectorised, where one with truth values is not."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return input * kept.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return gradient * kept.to(gradient.dtype), None


def kept_places(like: Tensor, lowest: int) -> Int8[Tensor, "..."]:
    """0 or 1 for each place of a tensor of this shape; 0, with probability `lowest` / 65,536, where its 16 bits are
    among the lowest levels.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    # in place, which alone is vectorised
    kept = draws.view(torch.int16)[: like.numel()].view(like.shape).ge_(lowest - LEVELS // 2)
    return kept.to(torch.int8)
