"""The light half of a vision-language backbone, which data workers carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Int, Shaped, UInt8
from torch import Tensor


class VLMProcessor(ABC):
    """The light half of a backbone, which data workers carry: its tokenizer, its positions and its image size."""

    marks: tuple[str, str] = ("", "")
    """What the model expects in a text before and after each image; the input formatter decides whether it stands
    there.
    """

    @abstractmethod
    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        """`input_ids` and `attention_mask`, right-padded; each `IMAGE_TOKEN` takes the places of one image's tokens.

        sizes: `resized` of every row's images, in order.
        """

    def position_ids(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        sizes: Sequence[Sequence[tuple[int, int]]],
    ) -> Int[Tensor, "*axes rows tokens"] | None:
        """The positions that the model was trained with, of what `tokenize` gave for `sizes`; a row's do not depend on
        the other rows.

        None where `VLMBackbone.embed` finds them in the ids alone.
        """
        return None

    @abstractmethod
    def resize(self, image: UInt8[Tensor, "3 height width"]) -> Shaped[Tensor, "3 new_height new_width"]:
        """The image as the vision tower reads it: at its size, or cut in tiles that stand side by side."""

    @abstractmethod
    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """What the tokens of an image of `size` are counted from: the size (height, width) that `resize` gives, or its
        own where it is cut.
        """
