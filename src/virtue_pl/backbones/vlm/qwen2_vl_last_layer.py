"""The last layer of Qwen2-VL's language model, for one token a row; keys and values are those of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer, rotate_half


class LastTokenLayer(Qwen2VLDecoderLayer):
    """transformers' own layer; given `last_token_index`, it computes the states of these tokens alone.

    Example:
        >>> use_last_token_layer(model.language_model)  # doctest: +SKIP
        >>> type(model.language_model.layers[-1]).__name__
        'LastTokenLayer'
    """

    def forward(
        self,
        hidden_states: Tensor,
        *arguments: Any,
        last_token_index: Int[Tensor, " rows"] | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the states of all tokens, or those at `last_token_index` as rows of one token."""
        if last_token_index is None:
            return super().forward(hidden_states, *arguments, **options)
        rows = torch.arange(len(last_token_index), device=last_token_index.device)
        mask = options["attention_mask"]
        read = self.attend_from_last(
            self.input_layernorm(hidden_states), rows, last_token_index, options["position_embeddings"], mask
        )
        last = hidden_states[rows, last_token_index][:, None] + read
        return last + self.mlp(self.post_attention_layernorm(last))

    def attend_from_last(
        self,
        states: Float[Tensor, "rows tokens hidden"],
        rows: Int[Tensor, " rows"],
        last: Int[Tensor, " rows"],
        rotation: tuple[Float[Tensor, "rows tokens head_dim"], Float[Tensor, "rows tokens head_dim"]],
        mask: Bool[Tensor, "rows 1 tokens tokens"] | Float[Tensor, "rows 1 tokens tokens"] | None,
    ) -> Float[Tensor, "rows 1 hidden"]:
        """Return the attention's output for the last tokens.

        The query heads that share a key head stand where a sequence's tokens would.
        """
        attention = self.self_attn
        number, tokens, _ = states.shape
        cos, sin = rotation
        query = attention.q_proj(states[rows, last]).view(number, -1, attention.head_dim)
        query = rotate(query, cos[rows, last][:, None], sin[rows, last][:, None])
        key, value = (
            projection(states).view(number, tokens, -1, attention.head_dim).transpose(1, 2)
            for projection in (attention.k_proj, attention.v_proj)
        )
        key = rotate(key, cos[:, None], sin[:, None])
        query = query.view(number, key.shape[1], -1, attention.head_dim)
        mask_rows = None if mask is None else mask[rows, :, last][:, :, None]
        read = scaled_dot_product_attention(query, key, value, mask_rows, scale=attention.scaling)
        return attention.o_proj(read.reshape(number, 1, -1))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the states with the rotary positions applied."""
    return states * cos + rotate_half(states) * sin


def use_last_token_layer(language_model: Any) -> None:
    """Replace the last layer by a `LastTokenLayer` with the same weights, in place."""
    number = len(language_model.layers) - 1
    old = language_model.layers[number]
    with torch.device("meta"):
        new = LastTokenLayer(language_model.config, number)
    new.load_state_dict(old.state_dict(), assign=True)
    language_model.layers[number] = new.train(old.training)
