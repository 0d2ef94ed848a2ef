"""Interface of a vision-language backbone: images and texts in, last hidden states out, through one token sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.types import EncoderBatch, TokenSequence


class VLMBackbone(nn.Module, ABC):
    """A vision tower and a language model that share one sequence.

    `vision_features` is the tower's frozen part, which may be computed once and stored; `vision_tokens` is the part
    that may be trained.

    Example:
        >>> from virtue_pl.backbones import Qwen2VLBackbone  # doctest: +SKIP
        >>> backbone: VLMBackbone = Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct")
        >>> images = backbone.vision_tokens(backbone.vision_features(batch.images.vision))
        >>> backbone(backbone.embed(batch, images)).shape    # rows, tokens, hidden
        torch.Size([2, 84, 1536])
    """

    hidden_size: int
    processor: VLMProcessor

    @property
    @abstractmethod
    def language_model(self) -> nn.Module:
        """Return the module that reads a token sequence, into which adapters go."""

    @property
    def layers(self) -> nn.ModuleList:
        """Return the language model's layers: of its module lists the one with the most parameters."""
        lists = [module for module in self.language_model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))

    def train(self, mode: bool = True) -> VLMBackbone:
        """Set training or eval mode; what is frozen stays in eval mode.

        A layer of the language model is in training mode as a whole where any of it is trained, such as an adapter.
        """
        super().train(mode)
        if mode:
            for module in self.modules():
                if module is not self and is_frozen(module):
                    module.eval()
            for layer in self.layers:
                layer.train(not is_frozen(layer))
        return self

    @abstractmethod
    def vision_features(
        self, pixels: Sequence[Shaped[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "..."], ...], ...]:
        """Return each image's frozen features, at one scale or several, without gradients."""

    @abstractmethod
    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "..."], ...]]
    ) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        """Return each image's tokens, at the width of the language model, from its `vision_features`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a string that changes with whatever `vision_features` depend on (`fingerprint_of`)."""

    @abstractmethod
    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        """Return embedded texts with the vision tokens in their positions, and position ids independent of the batch.

        vision: the tokens of each use of an image, in the order of `inputs.use_rows`.
        """

    @abstractmethod
    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        """Return the last hidden state (after the final norm); no logits are computed."""

    def last_states(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """Return `forward`'s state of each row's last token, for a pooling that reads no other.

        A backbone may override it to skip the other states.
        """
        return LastTokenPooling()(self(sequence), sequence.attention_mask)


def token_positions(is_chosen: Bool[Tensor, "rows tokens"], count: int) -> Int[Tensor, " count"]:
    """Return where the chosen tokens stand, rows one after the other, in order; nothing is read from the device.

    count: how many are chosen, which the host knows. Another number is an error of torch's.
    """
    flat = is_chosen.flatten()
    # the first slot takes all that are not chosen; what is not filled is no position
    slots = torch.full((count + 1,), len(flat), device=flat.device)
    numbers = torch.arange(len(flat), device=flat.device)
    return slots.scatter(0, flat.cumsum(dim=0) * flat, numbers)[1:]


def scatter_tokens(
    embeds: Float[Tensor, "rows tokens hidden"],
    is_chosen: Bool[Tensor, "rows tokens"],
    tokens: Float[Tensor, "count hidden"],
) -> Float[Tensor, "rows tokens hidden"]:
    """Return the embeddings with `tokens` in the chosen positions, in order."""
    positions = token_positions(is_chosen, len(tokens))
    return embeds.flatten(0, 1).index_copy(0, positions, tokens).view(embeds.shape)


def add_at(
    states: Float[Tensor, "rows tokens hidden"],
    positions: Int[Tensor, " count"],
    increments: Float[Tensor, "count hidden"],
) -> Float[Tensor, "rows tokens hidden"]:
    """Return the states with `increments` added at the given positions, which count rows one after the other."""
    flat = states.flatten(0, 1)
    return flat.index_copy(0, positions, flat[positions] + increments.to(flat.dtype)).view(states.shape)


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters, none of which is trained."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)
