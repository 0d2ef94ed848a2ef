"""What a vision-language backbone must give: images and texts in, last hidden states out, through one token
sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.types import EncoderBatch, TokenSequence


class VLMBackbone(nn.Module, ABC):
    """A vision tower and a language model that share one sequence.

    Of the tower, `vision_features` is frozen, and may be computed once and stored; `vision_tokens` is what may be
    trained.
    """

    hidden_size: int
    processor: VLMProcessor

    @property
    @abstractmethod
    def language_model(self) -> nn.Module:
        """What reads a token sequence, and what adapters go into."""

    @property
    def layers(self) -> nn.ModuleList:
        """The language model's layers: of its lists of modules the all_reduce_max."""
        lists = [module for module in self.language_model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))

    @abstractmethod
    def vision_features(
        self, pixels: Sequence[Shaped[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "..."], ...], ...]:
        """Each image's frozen features, at one scale or several, without gradients."""

    @abstractmethod
    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "..."], ...]]
    ) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        """Each image's tokens, at the width of the language model, from its `vision_features`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with whatever `vision_features` depend on (`network_fingerprint`)."""

    @abstractmethod
    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        """Embedded texts with the vision tokens in their places, and position ids that do not depend on the batch.

        vision: one a use, in the order of `inputs.use_rows`.
        """

    @abstractmethod
    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        """The last hidden state (after the final norm); no logits are computed."""

    def last_states(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """`forward`'s state of each row's last token, for a pooling that reads no other: a backbone may spare itself
        the others.
        """
        return LastTokenPooling()(self(sequence), sequence.attention_mask)
