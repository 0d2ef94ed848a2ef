"""Qwen2.5-VL on transformers' own model, whose tower attends within windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen2_5_VLModel

from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone


class Qwen2_5VLBackbone(QwenVLBackbone):
    """Qwen2.5-VL (arXiv 2502.13923). Its arguments are `QwenVLBackbone`'s."""

    model_class = Qwen2_5_VLModel

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        return tuple((tokens,) for tokens in self.encoded(pixels).pooler_output)
