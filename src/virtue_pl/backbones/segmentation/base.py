"""What a promptable segmentation model must give: a prompt encoder and a backbone that reads its tokens.

One file provides both finals, since they share the positional matrix and the width d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from virtue_pl.types import FeatureWidths, PromptBatch, PromptTokens, SegmentFeatures


class PromptEncoder(nn.Module, ABC):
    """Visual prompts to tokens of width `embed_dim`, for a feature map of `feature_size` = (height, width) places."""

    embed_dim: int
    feature_size: tuple[int, int]

    @abstractmethod
    def forward(self, prompts: PromptBatch) -> PromptTokens:
        """Tokens of every prompt. An empty prompt becomes the grid of points. A row does not depend on its
        neighbours.
        """


class SegmentationBackbone(nn.Module, ABC):
    """ImageBatch and prompt tokens to prompt-conditioned features and masks."""

    widths: FeatureWidths
    image_size: int
    """Side of the square canvas, in pixels, that images are resized to."""

    @abstractmethod
    def image_features(
        self, pixels: Shaped[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        """The frozen, prompt-free part: features of each image, at several scales, finest first."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with whatever `image_features` depend on (`network_fingerprint`)."""

    @abstractmethod
    def forward(
        self, features: tuple[Float[Tensor, "images channels height width"], ...], tokens: PromptTokens
    ) -> SegmentFeatures:
        """The prompted part; `tokens.images` says which image's features each prompt reads."""
