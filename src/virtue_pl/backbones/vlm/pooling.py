"""From the states of a row's tokens to one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Pooling(ABC):
    """Reduces each row's real tokens, wherever its padding stands."""

    @abstractmethod
    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        """One vector a row."""


class MeanPooling(Pooling):
    """The mean over real tokens, as sentence encoders are trained."""

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


class LastTokenPooling(Pooling):
    """The last real token, as causal models are trained (VIRTUE, section 3)."""

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        return states[torch.arange(len(states), device=states.device), last_token_index(attention_mask)]


def last_token_index(attention_mask: Int[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
    """Where each row's last real token stands."""
    return (attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(dim=1)


class FirstTokenPooling(Pooling):
    """The first real token, a BERT's [CLS] where nothing stands before it."""

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        return states[torch.arange(len(states), device=states.device), attention_mask.argmax(dim=1)]
