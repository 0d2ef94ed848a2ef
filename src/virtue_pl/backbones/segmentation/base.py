"""Interface of a promptable segmentation model: a prompt encoder, and a backbone that reads its tokens.

One file provides both finals, since they share the positional matrix and the width d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from virtue_pl.types import FeatureWidths, PromptBatch, PromptTokens, SegmentFeatures, VisualPrompt


class PromptEncoder(nn.Module, ABC):
    """Visual prompts to tokens of width `embed_dim`, for a feature map of `feature_size` = (height, width) cells.

    Example:
        >>> from virtue_pl.backbones import TimmSamPromptEncoder
        >>> encoder: PromptEncoder = TimmSamPromptEncoder(embed_dim=32, image_size=64)
        >>> encoder.embed_dim, encoder.feature_size
        (32, (4, 4))
    """

    not_in_fingerprint = frozenset({"grid_copies"})
    embed_dim: int
    feature_size: tuple[int, int]
    grid: VisualPrompt
    """The points that an empty prompt becomes."""

    def fill_empty(self, prompts: PromptBatch) -> list[VisualPrompt]:
        """Return the prompts with `grid` in place of empty ones; it goes to each device once."""
        device = prompts.image_index.device
        copies = vars(self).setdefault("grid_copies", {self.grid.points.device: self.grid})
        if device not in copies:
            copies[device] = self.grid.to(device)
        return [copies[device] if prompt.is_empty else prompt for prompt in prompts.prompts]

    @abstractmethod
    def forward(self, prompts: PromptBatch) -> PromptTokens:
        """Return the tokens of every prompt; a row does not depend on the others.

        An empty prompt becomes a grid of points.
        """


class SegmentationBackbone(nn.Module, ABC):
    """Images and prompt tokens to prompt-conditioned features and masks.

    Example:
        >>> import torch
        >>> from virtue_pl.backbones import TimmSamBackbone
        >>> backbone: SegmentationBackbone = TimmSamBackbone(embed_dim=32, image_size=64)
        >>> len(backbone.image_features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
        4
    """

    widths: FeatureWidths
    image_size: int
    """Height and width, in pixels, of the square canvas that images are resized to."""

    @abstractmethod
    def image_features(
        self, pixels: Shaped[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        """Return the frozen, prompt-free features of each image, at several scales, finest first."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a string that changes with whatever `image_features` depend on (`fingerprint_of`)."""

    @abstractmethod
    def forward(
        self, features: tuple[Float[Tensor, "images channels height width"], ...], tokens: PromptTokens
    ) -> SegmentFeatures:
        """The prompted part; `tokens.image_index` says which image's features each prompt reads."""
