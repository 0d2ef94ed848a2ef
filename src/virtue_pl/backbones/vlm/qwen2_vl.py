"""Qwen2-VL on transformers' own model: vision tower and language model, without the head that predicts words."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2VLModel

from virtue_pl.backbones.vlm.pooling import last_token_index
from virtue_pl.backbones.vlm.qwen2_vl_last_layer import use_last_token_layer
from virtue_pl.backbones.vlm.qwen_vl import QwenVLBackbone
from virtue_pl.types import TokenSequence

READS_MASKS = ("sdpa", "eager")
"""Attentions whose masks have a row for each token, None where all earlier tokens are read. That of flash attention has
two dimensions, that of flex attention is no tensor.
"""


class Qwen2VLBackbone(QwenVLBackbone):
    """Qwen2-VL (arXiv 2409.12191), the paper's model, with `QwenVLBackbone`'s arguments.

    Example:
        >>> backbone = Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16")  # doctest: +SKIP
        >>> backbone.hidden_size
        1536
    """

    model_class = Qwen2VLModel

    def replace_layers(self) -> None:
        """Replace the last layer by one that can compute a single token (`LastTokenLayer`)."""
        use_last_token_layer(self.model.language_model)

    def last_states(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """Return the state of each row's last token, for which alone the last layer is computed.

        All of the last layer is computed where the attention's masks are not read by token (`READS_MASKS`).
        """
        if self.model.language_model.config._attn_implementation not in READS_MASKS:
            return super().last_states(sequence)
        index = last_token_index(sequence.attention_mask)
        return self.run_language_model(sequence, last_token_index=index)[:, 0]
