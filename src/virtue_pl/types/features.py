"""Features and tokens on their way from the backbones to the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from virtue_pl.types.tensors import TensorDataclass


@dataclass(frozen=True, eq=False)
class ImageFeatures(TensorDataclass):
    """What the frozen networks see in one image, whatever the prompt; a stream of which nothing is known is empty.

    segmentation: `SegmentationBackbone.image_features`, finest scale first. vision: `VLMBackbone.vision_features`.
    """

    segmentation: tuple[Float[Tensor, "channels height width"], ...] = ()
    vision: tuple[Float[Tensor, "..."], ...] = ()


NO_FEATURES = ImageFeatures()
"""Of an image of which no frozen features are stored or cached."""


def merge_features(features: ImageFeatures, other: ImageFeatures) -> ImageFeatures:
    """Return each stream's features, those of `other` where `features` has none."""
    return ImageFeatures(features.segmentation or other.segmentation, features.vision or other.vision)


@dataclass(frozen=True, eq=False)
class PromptTokens(TensorDataclass):
    """Prompts as the segmentation model reads them, d = its width.

    A row is a list of tokens of its own length (`valid` marks the real ones, which stand first).
    image_positions: the positional encoding of the feature map's places, from the same matrix.
    drawn: the prompt as maps (boxes, inside points, outside points, masks), in [0, 1], four times as fine as the
    feature map, where the
        encoder draws it.
    """

    sparse: Float[Tensor, "prompts tokens d"]
    valid: Bool[Tensor, "prompts tokens"]
    dense: Float[Tensor, "prompts d height width"]
    image_positions: Float[Tensor, "d height width"]
    images: Int[Tensor, " prompts"]
    drawn: Float[Tensor, "prompts 4 map_height map_width"] | None = None

    @property
    def focus(self) -> Float[Tensor, "prompts height width"] | None:
        """How much of each place of the feature map the prompt touches, in [0, 1], where the encoder draws it."""
        if self.drawn is None:
            return None
        touched = self.drawn[:, [0, 1, 3]].sum(dim=1, keepdim=True).clamp(max=1)
        return avg_pool2d(touched, self.drawn.shape[-1] // self.image_positions.shape[-1])[:, 0]


@dataclass(frozen=True, eq=False)
class SegmentFeatures(TensorDataclass):
    """What the segmentation model knows of each prompt.

    embedding: the prompt-conditioned image embedding (image side of the two-way transformer), the paper's feature.
    image: the unprompted features of the same image, at whatever resolution and width the backbone gives.
    mask_logits: the predicted mask over the whole image (> 0 is inside); None where the backbone predicts none.
    image_positions: the positional encoding of `embedding`'s places.
    focus: `PromptTokens.focus`.
    """

    embedding: Float[Tensor, "prompts d height width"]
    image: Float[Tensor, "prompts channels image_height image_width"]
    mask_logits: Float[Tensor, "prompts mask_height mask_width"] | None
    image_positions: Float[Tensor, "d height width"]
    focus: Float[Tensor, "prompts height width"] | None = None

    def split(self) -> list[SegmentFeatures]:
        """Of each prompt alone."""
        return [self.only(slice(index, index + 1)) for index in range(len(self.embedding))]

    def only(self, chosen: slice) -> SegmentFeatures:
        logits, focus = (None if field is None else field[chosen] for field in (self.mask_logits, self.focus))
        return replace(
            self, embedding=self.embedding[chosen], image=self.image[chosen], mask_logits=logits, focus=focus
        )

    @classmethod
    def join(cls, parts: Sequence[SegmentFeatures]) -> SegmentFeatures:
        """Of all prompts of `parts`, which have the same fields and one feature map."""
        logits = [part.mask_logits for part in parts if part.mask_logits is not None]
        focus = [part.focus for part in parts if part.focus is not None]
        embedding, image = torch.cat([part.embedding for part in parts]), torch.cat([part.image for part in parts])
        return cls(
            embedding,
            image,
            torch.cat(logits) if logits else None,
            parts[0].image_positions,
            torch.cat(focus) if focus else None,
        )


class FeatureWidths(NamedTuple):
    """Channels of `SegmentFeatures`: of `embedding` and of `image`."""

    embedding: int
    image: int


@dataclass(frozen=True, eq=False)
class SegmentTokens(TensorDataclass):
    """What a connector makes of `SegmentFeatures`, one row a prompt.

    tokens: for the language model, in front of the row.
    summary: a vector that joins the row's pooled state behind the language model; None without that short way.
    """

    tokens: Float[Tensor, "prompts tokens hidden"]
    summary: Float[Tensor, "prompts hidden"] | None = None


@dataclass(frozen=True, eq=False)
class TokenSequence(TensorDataclass):
    """What a language model reads: embeddings, which of them are real, and their positions, always moved together.

    position_ids: [rows, tokens], or [axes, rows, tokens] for a model with several position axes.
    deepstack_embeds: one for each of the model's first layers, what is added to its states behind it, at the places of
    `visual_pos_mask`, row by row
        (DeepStack); empty for a model that reads an image's tokens at its input alone.
    """

    embeds: Float[Tensor, "rows tokens hidden"]
    attention_mask: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "*axes rows tokens"]
    deepstack_embeds: tuple[Float[Tensor, "places hidden"], ...] = ()
    visual_pos_mask: Bool[Tensor, "rows tokens"] | None = None

    def prepend(self, tokens: Float[Tensor, "chosen new hidden"], rows: Int[Tensor, " chosen"]) -> TokenSequence:
        """`tokens` in front of the given rows, at position 0; a row with less of them than another gets padding before
        them.

        A row that is given several times has them all, in the order in which they are given.
        """
        if not len(rows):
            return self
        earlier = (rows[:, None] == rows).tril(diagonal=-1).sum(dim=1)
        given = torch.zeros(len(self.embeds), dtype=torch.long, device=rows.device).index_add(
            0, rows, torch.ones_like(rows)
        )
        most = int(given.max())
        places = (rows, most - given[rows] + earlier)
        embeds = self.embeds.new_zeros(len(self.embeds), most, *tokens.shape[1:]).index_put(
            places, tokens.to(self.embeds.dtype)
        )
        mask = self.attention_mask.new_zeros(len(self.embeds), most).index_put(
            places, self.attention_mask.new_ones(len(rows))
        )
        front = mask.repeat_interleave(tokens.shape[1], dim=1)
        positions = self.position_ids.new_zeros(*self.position_ids.shape[:-1], front.shape[1])
        return TokenSequence(
            torch.cat([embeds.flatten(1, 2), self.embeds], dim=1),
            torch.cat([front, self.attention_mask], dim=1),
            torch.cat([positions, self.position_ids], dim=-1),
            self.deepstack_embeds,
            None
            if self.visual_pos_mask is None
            else torch.cat([torch.zeros_like(front, dtype=torch.bool), self.visual_pos_mask], dim=1),
        )
