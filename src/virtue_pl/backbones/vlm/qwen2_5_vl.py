"""Qwen2.5-VL on transformers' own model, whose tower attends within windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen2_5_VLModel

from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone


class Qwen2_5VLBackbone(QwenVLBackbone):
    """Qwen2.5-VL (arXiv 2502.13923), with `QwenVLBackbone`'s arguments.

    Example:
        >>> backbone = Qwen2_5VLBackbone("Qwen/Qwen2.5-VL-3B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> backbone.hidden_size
        2048
    """

    model_class = Qwen2_5_VLModel

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Return each image's tokens behind the merger, which is frozen too."""
        return tuple((tokens,) for tokens in self.encode_images(pixels).pooler_output)
