"""Features and tokens on their way from the backbones to the language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from virtue_pl.types.layout import group_by_owner
from virtue_pl.types.tensors import TensorDataclass, index_tensors


@dataclass(frozen=True, eq=False)
class ImageFeatures(TensorDataclass):
    """One image's outputs of the frozen networks, which depend on no prompt; empty for a stream without any.

    segmentation: `SegmentationBackbone.image_features`, finest scale first. vision: `VLMBackbone.vision_features`.

    Example:
        >>> features = ImageFeatures(vision=(torch.zeros(16, 64),))
        >>> bool(features.vision), bool(features.segmentation)
        (True, False)
    """

    segmentation: tuple[Float[Tensor, "channels height width"], ...] = ()
    vision: tuple[Float[Tensor, "..."], ...] = ()


NO_FEATURES = ImageFeatures()
"""Stands for an image of which no frozen features are stored or cached."""


def merge_features(features: ImageFeatures, other: ImageFeatures) -> ImageFeatures:
    """Return each stream's features, those of `other` where `features` has none."""
    return ImageFeatures(features.segmentation or other.segmentation, features.vision or other.vision)


@dataclass(frozen=True, eq=False)
class PromptTokens(TensorDataclass):
    """Visual prompts encoded for the segmentation model, whose width is d.

    sparse: each prompt's tokens, padded to one length. valid: which tokens are real; they come first.
    dense: one map a prompt, added to the image's feature map.
    image_positions: the positional encoding of the feature map's cells, from the same matrix as the tokens'.
    image_index: for each prompt, the index of its image in the batch.
    prompt_maps: each prompt drawn as maps (boxes, inside points, outside points, masks) in [0, 1], four times as fine
        as the feature map; None where the encoder draws none.
    counts: the number of real tokens of each prompt, on the host; read from `valid` where it is not given.

    Example:
        >>> sparse, valid = torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
        >>> dense, positions = torch.zeros(1, 8, 4, 4), torch.zeros(8, 4, 4)
        >>> tokens = PromptTokens(sparse, valid, dense, positions, torch.tensor([0]), torch.ones(1, 4, 16, 16))
        >>> tokens.focus.shape
        torch.Size([1, 4, 4])
    """

    sparse: Float[Tensor, "prompts tokens d"]
    valid: Bool[Tensor, "prompts tokens"]
    dense: Float[Tensor, "prompts d height width"]
    image_positions: Float[Tensor, "d height width"]
    image_index: Int[Tensor, " prompts"]
    prompt_maps: Float[Tensor, "prompts 4 map_height map_width"] | None = None
    counts: tuple[int, ...] = ()

    def rows_by_count(self) -> Iterator[tuple[int, Int[Tensor, " rows"]]]:
        """Yield each number of real tokens that prompts have, least first, and the indices of these prompts."""
        counts = self.counts or tuple(self.valid.sum(dim=1).tolist())
        groups = sorted(group_by_owner(counts).items())
        yield from zip(
            (count for count, _ in groups), index_tensors([rows for _, rows in groups], self.valid.device), strict=True
        )

    @property
    def focus(self) -> Float[Tensor, "prompts height width"] | None:
        """The share of each cell of the feature map that the prompt covers, in [0, 1]; None without `prompt_maps`."""
        if self.prompt_maps is None:
            return None
        inside = torch.stack([self.prompt_maps[:, number] for number in (0, 1, 3)], dim=1)
        covered = inside.sum(dim=1, keepdim=True).clamp(max=1)
        return avg_pool2d(covered, self.prompt_maps.shape[-1] // self.image_positions.shape[-1])[:, 0]


@dataclass(frozen=True, eq=False)
class SegmentFeatures(TensorDataclass):
    """The segmentation model's output for each prompt.

    embedding: the prompt-conditioned image embedding (image side of the two-way transformer), the paper's feature.
    image: the unprompted features of the same image, at whatever resolution and width the backbone gives.
    mask_logits: the predicted mask over the whole image (> 0 is inside); None where the backbone predicts none.
    image_positions: the positional encoding of `embedding`'s cells.
    focus: `PromptTokens.focus`.

    Example:
        >>> features = SegmentFeatures(torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 4, 4), None, torch.zeros(8, 4, 4))
        >>> [len(one.embedding) for one in features.split()]
        [1, 1]
    """

    embedding: Float[Tensor, "prompts d height width"]
    image: Float[Tensor, "prompts channels image_height image_width"]
    mask_logits: Float[Tensor, "prompts mask_height mask_width"] | None
    image_positions: Float[Tensor, "d height width"]
    focus: Float[Tensor, "prompts height width"] | None = None

    def split(self) -> list[SegmentFeatures]:
        """Return each prompt's features by themselves, in order."""
        return [self.select(slice(index, index + 1)) for index in range(len(self.embedding))]

    def select(self, prompts: slice) -> SegmentFeatures:
        """Return the features of a range of prompts."""
        logits, focus = (None if field is None else field[prompts] for field in (self.mask_logits, self.focus))
        return replace(
            self, embedding=self.embedding[prompts], image=self.image[prompts], mask_logits=logits, focus=focus
        )

    @classmethod
    def join(cls, parts: Sequence[SegmentFeatures]) -> SegmentFeatures:
        """Return the features of all prompts of `parts`, which have the same fields and one feature map's size."""
        if len(parts) == 1:
            return parts[0]
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
    """The numbers of channels of `SegmentFeatures.embedding` and `SegmentFeatures.image`.

    Example:
        >>> FeatureWidths(embedding=256, image=384).image
        384
    """

    embedding: int
    image: int


@dataclass(frozen=True, eq=False)
class SegmentTokens(TensorDataclass):
    """A connector's output for `SegmentFeatures`, one row a prompt.

    tokens: for the language model, in front of the prompt's row of text.
    summary: a vector that joins the row's pooled state behind the language model; None without that shortcut.

    Example:
        >>> SegmentTokens(torch.zeros(2, 4, 64)).tokens.shape
        torch.Size([2, 4, 64])
    """

    tokens: Float[Tensor, "prompts tokens hidden"]
    summary: Float[Tensor, "prompts hidden"] | None = None


@dataclass(frozen=True, eq=False)
class TokenSequence(TensorDataclass):
    """A language model's input: embeddings, attention mask and positions, always moved together.

    position_ids: [rows, tokens], or [axes, rows, tokens] for a model with several position axes.
    is_padded: whether any token is not real, where the host knows; None where it would have to ask the device.
    deepstack_embeds: for each of the model's first layers, what is added to its output at the positions of
        `visual_pos_mask`, row by row (DeepStack); empty for a model that reads an image's tokens at its input alone.

    Example:
        >>> ones = torch.ones(2, 3, dtype=torch.long)
        >>> sequence = TokenSequence(torch.zeros(2, 3, 8), ones, ones)
        >>> sequence.prepend(torch.zeros(1, 4, 8), torch.tensor([0])).attention_mask.tolist()
        [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]]
    """

    embeds: Float[Tensor, "rows tokens hidden"]
    attention_mask: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "*axes rows tokens"]
    deepstack_embeds: tuple[Float[Tensor, "visual_tokens hidden"], ...] = ()
    visual_pos_mask: Bool[Tensor, "rows tokens"] | None = None
    is_padded: bool | None = None

    def prepend(
        self, tokens: Float[Tensor, "sets new hidden"], rows: Int[Tensor, " sets"] | Sequence[int]
    ) -> TokenSequence:
        """Return the sequence with sets of tokens in front of the given rows, at position 0.

        A row that is given several times gets all its sets, in the order given; a row with fewer sets than another gets
        padding before them. rows: as integers where the host has them; a tensor is read.
        """
        if not len(rows):
            return self
        owners = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        counts = Counter(owners)
        uneven = len({counts[row] for row in range(len(self.embeds))}) > 1
        embeds, mask = self._front(tokens, owners, max(counts.values()))
        positions = self.position_ids.new_zeros(*self.position_ids.shape[:-1], mask.shape[1])
        visual = self.visual_pos_mask
        return TokenSequence(
            torch.cat([embeds, self.embeds], dim=1),
            torch.cat([mask, self.attention_mask], dim=1),
            torch.cat([positions, self.position_ids], dim=-1),
            self.deepstack_embeds,
            None if visual is None else torch.cat([torch.zeros_like(mask, dtype=torch.bool), visual], dim=1),
            True if uneven else self.is_padded,
        )

    def _front(
        self, tokens: Float[Tensor, "sets new hidden"], rows: Sequence[int], most: int
    ) -> tuple[Float[Tensor, "rows front hidden"], Int[Tensor, "rows front"]]:
        """Return the embeddings and the mask of the tokens in front of every row, padded on the left.

        most: the largest number of sets of any row.
        """
        following = {row: most - count for row, count in Counter(rows).items()}
        positions = []
        for row in rows:
            positions.append(following[row])
            following[row] += 1
        index = index_tensors([rows, positions], tokens.device)
        embeds = self.embeds.new_zeros(len(self.embeds), most, *tokens.shape[1:])
        embeds = embeds.index_put(index, tokens.to(self.embeds.dtype))
        mask = self.attention_mask.new_zeros(len(self.embeds), most)
        mask = mask.index_put(index, self.attention_mask.new_ones(len(rows)))
        return embeds.flatten(1, 2), mask.repeat_interleave(tokens.shape[1], dim=1)
