"""Qwen3-VL on transformers' own model, whose language model reads the tower at several depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Qwen3VLModel

from virtue_pl.backbones.vlm.base import add_at
from virtue_pl.backbones.vlm.qwen_tower import Grid, join_on, position_weights
from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone


class Qwen3VLBackbone(QwenVLBackbone):
    """Qwen3-VL (arXiv 2511.21631), with `QwenVLBackbone`'s arguments; its tokens are squares of 32x32 pixels.

    Example:
        >>> backbone = Qwen3VLBackbone("Qwen/Qwen3-VL-2B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> backbone.hidden_size
        2048
    """

    model_class = Qwen3VLModel

    def replace_layers(self) -> None:
        """Have the tower's levels added at tokens by their number, not by a mask that would be read back."""
        self.language_model._deepstack_process = add_level

    def tower_inputs(self, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
        """Return the inputs of every Qwen-VL's tower, and how its learned positions are mixed for each patch."""
        tower = self.model.visual
        mode, corners = tower.interpolation_mode, tower.interpolation_align_corners
        mixed = [position_weights(grid, tower.num_grid_per_side, mode, corners, self.merge_size) for grid in grids]
        return {
            **super().tower_inputs(grids, device),
            "interp_indices": join_on(device, [indices for indices, _ in mixed]),
            "interp_weights": join_on(device, [weights for _, weights in mixed]),
        }


def add_level(
    states: Float[Tensor, "rows tokens hidden"],
    chosen: Int[Tensor, " count"] | Bool[Tensor, "rows tokens"],
    level: Float[Tensor, "count hidden"],
) -> Float[Tensor, "rows tokens hidden"]:
    """Return the states with a level added at the chosen tokens: at their numbers, or at a mask, which is read back."""
    return add_at(states, chosen.flatten().nonzero()[:, 0] if chosen.dtype == torch.bool else chosen, level)
