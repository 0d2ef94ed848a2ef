"""Qwen3-VL on transformers' own model, whose language model reads the tower at several depths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen3VLModel

from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone


class Qwen3VLBackbone(QwenVLBackbone):
    """Qwen3-VL (arXiv 2511.21631). Its arguments are `QwenVLBackbone`'s; its tokens are squares of 32x32 pixels."""

    model_class = Qwen3VLModel

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"], ...], ...]:
        """The image's tokens, and for each of the language model's first layers what is added behind it (DeepStack)."""
        found = self.encoded(pixels)
        return tuple(zip(found.pooler_output, *found.deepstack_features, strict=True))
