"""What a vision-language backbone must give: pictures and texts in, last hidden states out, through one token sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from virtue_pl.pooling import LastTokenPooling
from virtue_pl.types import EncoderBatch, TokenSequence


class VLMProcessor(ABC):
    """The light half of a backbone, which data workers carry: its tokenizer, its positions and its picture size."""

    marks: tuple[str, str] = ("", "")
    """What the model expects in a text before and after each picture; the recipe decides whether it stands there."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        """`input_ids` and `attention_mask`, right-padded; each `IMAGE_TOKEN` takes the places of one picture's tokens.

        sizes: `resized` of every row's pictures, in order.
        """

    def position_ids(
        self, input_ids: Int[Tensor, "rows tokens"], attention_mask: Int[Tensor, "rows tokens"], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> Int[Tensor, "*axes rows tokens"] | None:
        """The positions that the model was trained with, of what `tokenize` gave for `sizes`; a row's do not depend on the other rows.

        None where `VLMBackbone.embed` finds them in the ids alone.
        """
        return None

    @abstractmethod
    def resize(self, image: UInt8[Tensor, "3 height width"]) -> Shaped[Tensor, "3 new_height new_width"]:
        """The picture as the vision tower reads it: at its size, or cut in tiles that stand side by side."""

    @abstractmethod
    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """What the tokens of a picture of `size` are counted from: the size (height, width) that `resize` gives, or its own where it is cut."""


class VLMBackbone(nn.Module, ABC):
    """A vision tower and a language model that share one sequence.

    Of the tower, `vision_features` is frozen, and may be computed once and stored; `vision_tokens` is what may be trained.
    """

    hidden_size: int
    processor: VLMProcessor

    @property
    @abstractmethod
    def language_model(self) -> nn.Module:
        """What reads a token sequence, and what adapters go into."""

    @property
    def layers(self) -> nn.ModuleList:
        """The language model's layers: of its lists of modules the largest."""
        lists = [module for module in self.language_model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))

    @abstractmethod
    def vision_features(self, pixels: Sequence[Shaped[Tensor, "3 height width"]]) -> tuple[tuple[Float[Tensor, "..."], ...], ...]:
        """Each picture's frozen features, at one scale or several, without gradients."""

    @abstractmethod
    def vision_tokens(self, features: Sequence[tuple[Float[Tensor, "..."], ...]]) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        """Each picture's tokens, at the width of the language model, from its `vision_features`."""

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
        """`forward`'s state of each row's last token, for a pooling that reads no other: a backbone may spare itself the others."""
        return LastTokenPooling()(self(sequence), sequence.attention_mask)
