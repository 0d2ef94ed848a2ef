"""Qwen2-VL on transformers' own model: its vision tower and its language model, without the head that predicts
words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen2VLModel

from virtue_pl.backbones.vlm.pooling import last_token_index
from virtue_pl.backbones.vlm.qwen2_vl_last_layer import let_last_layer_give_one_token
from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone
from virtue_pl.types import TokenSequence


class Qwen2VLBackbone(QwenVLBackbone):
    """Qwen2-VL, the paper's model. Its arguments are `QwenVLBackbone`'s."""

    model_class = Qwen2VLModel

    def change_layers(self) -> None:
        let_last_layer_give_one_token(self.model.language_model)

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the merger, which is frozen too: already at the language model's width."""
        return tuple((tokens,) for tokens in self.encoded(pixels).pooler_output)

    def last_states(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """The last layer is computed for each row's last token alone."""
        output = self.model.language_model(
            inputs_embeds=sequence.embeds,
            attention_mask=sequence.attention_mask,
            position_ids=sequence.position_ids,
            use_cache=False,
            last_token_index=last_token_index(sequence.attention_mask),
        )
        return output.last_hidden_state[:, 0]
