"""Qwen2-VL on transformers' own model: its vision tower and its language model, without the head that predicts words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen2VLModel

from virtue_pl.backbones.qwen_vl import QwenVLBackbone


class Qwen2VLBackbone(QwenVLBackbone):
    """Qwen2-VL, the paper's model. Its arguments are `QwenVLBackbone`'s."""

    model_class = Qwen2VLModel

    @torch.no_grad()
    def vision_features(self, pixels: Sequence[UInt8[Tensor, "3 height width"]]) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the merger, which is frozen too: already at the language model's width."""
        return tuple((tokens,) for tokens in self.encoded(pixels).pooler_output)
