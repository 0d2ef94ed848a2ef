"""Qwen3-VL on transformers' own model, whose language model reads the tower at several depths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen3VLModel

from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone


class Qwen3VLBackbone(QwenVLBackbone):
    """Qwen3-VL (arXiv 2511.21631), with `QwenVLBackbone`'s arguments; its tokens are squares of 32x32 pixels.

    Example:
        >>> backbone = Qwen3VLBackbone("Qwen/Qwen3-VL-2B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> backbone.hidden_size
        2048
    """

    model_class = Qwen3VLModel

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"], ...], ...]:
        """Return each image's tokens, and the levels to add behind the language model's first layers (DeepStack)."""
        found = self.encode_images(pixels)
        return tuple(zip(found.pooler_output, *found.deepstack_features, strict=True))
