"""Pooling of a row's token states to one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Pooling(ABC):
    """Reduction of each row's real tokens to one vector, wherever its padding stands.

    Example:
        >>> pooling: Pooling = MeanPooling()
        >>> pooling(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
        [[2.0]]
    """

    @abstractmethod
    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        """Return one vector a row."""


class MeanPooling(Pooling):
    """The mean over real tokens, as sentence encoders are trained.

    Example:
        >>> MeanPooling()(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
        [[2.0]]
    """

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


class LastTokenPooling(Pooling):
    """The last real token, as causal models are trained (VIRTUE, section 3).

    Example:
        >>> LastTokenPooling()(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
        [[3.0]]
    """

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        return states[torch.arange(len(states), device=states.device), last_token_index(attention_mask)]


def last_token_index(attention_mask: Int[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
    """Return the index of each row's last real token."""
    return (attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(dim=1)


class FirstTokenPooling(Pooling):
    """The first real token, a BERT's [CLS] where nothing stands before it.

    Example:
        >>> FirstTokenPooling()(torch.tensor([[[9.0], [1.0], [3.0]]]), torch.tensor([[0, 1, 1]])).tolist()
        [[1.0]]
    """

    def __call__(
        self, states: Float[Tensor, "rows tokens hidden"], attention_mask: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows hidden"]:
        return states[torch.arange(len(states), device=states.device), attention_mask.argmax(dim=1)]
