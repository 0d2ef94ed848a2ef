"""Qwen2.5-VL on transformers' own model, whose tower attends within windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLModel

from virtue_pl.backbones.vlm.qwen_tower import Grid, Stretches, window_order
from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone
from virtue_pl.types import index_tensors


class Qwen2_5VLBackbone(QwenVLBackbone):
    """Qwen2.5-VL (arXiv 2502.13923), with `QwenVLBackbone`'s arguments.

    Example:
        >>> backbone = Qwen2_5VLBackbone("Qwen/Qwen2.5-VL-3B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> backbone.hidden_size
        2048
    """

    model_class = Qwen2_5_VLModel

    def tower_inputs(self, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
        """Return the inputs of every Qwen-VL's tower, the tokens window by window, and the windows."""
        tokens: list[int] = []
        windows: list[int] = []
        for grid in grids:
            order, lengths = window_order(grid, self.merge_size, self.model.visual.window_size, self.patch_size)
            start = len(tokens)
            tokens += [start + token for token in order]
            windows += lengths
        (window_index,) = index_tensors([tokens], device)
        return {
            **super().tower_inputs(grids, device),
            "window_index": window_index,
            "cu_window_seqlens": Stretches(windows),
        }
