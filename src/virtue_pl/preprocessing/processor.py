"""The light half of a vision-language backbone, which data workers carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.types import IMAGE_TOKEN, VirtueError


class VLMProcessor(ABC):
    """The light half of a backbone, which data workers carry: its tokenizer, its positions and its image size.

    Example:
        >>> size = processor.resized_size((480, 640))  # doctest: +SKIP
        >>> input_ids, attention_mask = processor.tokenize([f"{IMAGE_TOKEN}What is this?"], [[size]])
    """

    image_delimiters: tuple[str, str] = ("", "")
    """The text that the model expects before and after each image; the input formatter decides whether to add it."""
    text_settings: frozenset[str] = frozenset({"tokenizer", "max_tokens", "files"})
    """Names of the attributes that only texts depend on."""

    def image_settings(self) -> dict[str, Any]:
        """Return the attributes that a prepared image depends on, which key its stored features: all but the texts'."""
        return {name: value for name, value in vars(self).items() if name not in self.text_settings}

    @abstractmethod
    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        """Return `input_ids` and `attention_mask`, right-padded; each `IMAGE_TOKEN` becomes all tokens of one image.

        sizes: the `resized_size` of every row's images, in order.
        """

    def check_row(self, text: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise VirtueError for a row that `tokenize` cannot read.

        Here that is another number of `IMAGE_TOKEN`s than of images. sizes: the `resized_size` of the row's images.
        """
        found = text.count(IMAGE_TOKEN)
        if found != len(sizes):
            raise VirtueError(
                f"a text has {found} positions for images, expected {len(sizes)}, one {IMAGE_TOKEN} for each of its"
                " images"
            )

    def position_ids(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        sizes: Sequence[Sequence[tuple[int, int]]],
    ) -> Int[Tensor, "*axes rows tokens"] | None:
        """Return the positions that the model was trained with, for the tokens that `tokenize` returned for `sizes`.

        A row's positions do not depend on the other rows. None where `VLMBackbone.embed` derives them from the ids.
        """
        return None

    @abstractmethod
    def resize(self, image: UInt8[Tensor, "3 height width"]) -> Shaped[Tensor, "3 new_height new_width"]:
        """Return the image as the vision tower reads it: at its size, or cut in tiles that stand side by side."""

    @abstractmethod
    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) from which the tokens of an image of `size` are counted.

        It is the size of the image that `resize` returns, or `size` itself where the image is cut in tiles.
        """
