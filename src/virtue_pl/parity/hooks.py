"""Observation of a model: its quantities on the way from rows to embeddings, by the names of the recordings."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import PublishedFormatter, VirtueFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, SegmentTokens, VirtueError


@torch.no_grad()
def observe(model: EmbeddingModel, items: Sequence[EmbeddingInput]) -> dict[str, Tensor]:
    """Return every recorded quantity of the rows, which are encoded in one batch.

    `model_attention_mask` is 0 for padding. A model without a segmentation stream has none of its quantities.
    """
    batch = batch_of(model, items)
    if isinstance(model, Virtue):
        segments, found = observe_segmentation(model, batch)
        return {**found, **observe_fusion(model.fusion, batch, segments), "embedding": model.encode(batch)}
    assert isinstance(model, VLMFusionHead)
    return {**observe_fusion(model, batch, None), "embedding": model.encode(batch)}


def batch_of(model: EmbeddingModel, items: Sequence[EmbeddingInput]) -> EncoderBatch:
    """Return rows, whose texts are prepared already, as a batch on the model's device."""
    return verbatim_collator(model).encoder_batch(list(items)).to(model.device)


def verbatim_collator(model: EmbeddingModel) -> ContrastiveCollator:
    """Return the model's collator, set for texts and prompts that are prepared already, as recordings hold them.

    Texts describe the prompt and have their spaces; prompts are on the canvas, whatever frame the formatter gives them.
    """
    collator = model.collator
    if not isinstance(collator, ContrastiveCollator):
        raise VirtueError(f"{type(model).__name__} prepares no rows, expected a model that embeds")
    formatter = collator.formatter
    if isinstance(formatter, VirtueFormatter):
        formatter = copy(formatter)
        formatter.prompt_text = False
    if isinstance(formatter, PublishedFormatter):
        formatter.space_after_image, formatter.prompt_frame = False, "image"
    verbatim = copy(collator)
    verbatim.formatter = formatter
    return verbatim


def observe_segmentation(model: Virtue, batch: EncoderBatch) -> tuple[SegmentTokens | None, dict[str, Tensor]]:
    """Return the segment tokens, if a row has a prompt, and the segmentation stream's recorded quantities."""
    if not len(batch.prompts):
        return None, {}
    images, prompts = batch.prompted_images()
    tokens = model.prompt_encoder(prompts)
    features = model.segmentation(images, tokens)
    segments = model.connector(features)
    *_, level = [torch.stack(levels) for levels in zip(*model.segmentation.frozen_features(images), strict=True)]
    found = {
        "sam_fpn_last": level[prompts.image_index],
        "sam_sparse": tokens.sparse,
        "mask_embeddings": features.embedding,
    }
    return segments, {**found, "seg_tokens": segments.tokens}


def observe_fusion(head: VLMFusionHead, batch: EncoderBatch, segments: SegmentTokens | None) -> dict[str, Tensor]:
    """Return the recorded quantities of the vision-language model."""
    images = head.backbone.vision_tokens(head.frozen_features(batch.images))
    vision = [images[number] for number in batch.layout.use_images]
    sequence = head.backbone.embed(batch, vision)
    if segments is not None:
        sequence = sequence.prepend(segments.tokens, batch.layout.prompt_rows)
    found = {"vision_tokens": torch.cat(vision)} if vision else {}
    return {
        **found,
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "inputs_embeds": sequence.embeds,
        "position_ids": sequence.position_ids,
        "model_attention_mask": sequence.attention_mask,
        "last_hidden_state": head.backbone(sequence),
    }


TOKENS = {
    "input_ids": "attention_mask",
    "inputs_embeds": "model_attention_mask",
    "position_ids": "model_attention_mask",
}
TOKENS["last_hidden_state"] = "model_attention_mask"
"""Quantities with one entry a token, and the mask of the tokens that are no padding."""


def real_tokens(name: str, outputs: Any) -> Tensor:
    """Return a quantity without its padding, row after row, so that left and right padding compare equal."""
    value, mask = outputs[name], outputs.get(TOKENS.get(name, ""))
    if mask is None:
        return value
    if name == "position_ids" and value.ndim == 3:
        return value[:, mask.bool()]
    return value[mask.bool()]


def subsample(value: Tensor, stride: int) -> Tensor:
    """Return every N-th row and column of a map, as `<name>_sN` is recorded; [..., height / N, width / N]."""
    return value[..., ::stride, ::stride]
