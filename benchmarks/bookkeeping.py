"""CPU seconds of a step beside its networks: cutting, selecting, moving and joining rows, with no network run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mid_size import pair_batch, timed
from torch import Tensor

from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import (
    EncoderBatch,
    ImageBatch,
    ImageFeatures,
    PairBatch,
    PairIds,
    PromptBatch,
    SegmentFeatures,
    SegmentTokens,
)

UNIT = 8
"""Rows that are prepared; larger batches repeat them, as rows of their own with images of their own."""


def measure_bookkeeping(model: Virtue, rows: int, chunk_size: int, repeats: int = 3) -> float:
    """Return the least CPU seconds of a step of `rows` pairs, whose networks return what they are asked for at once."""
    model.gradient_cache = GradientCache(chunk_size)
    leave_networks_out(model)
    unit = pair_batch(model, UNIT)
    return min(timed(lambda: step(model, repeat_pairs(unit, rows // UNIT)))[1] for _ in range(repeats))


def step(model: Virtue, batch: PairBatch) -> None:
    embedded = model.embed_pairs(batch.to("cpu"))
    (embedded.queries.sum() + embedded.targets.sum()).backward()


def leave_networks_out(model: Any) -> None:
    """Replace what the networks of a model compute, in place, by tensors of a few numbers with a gradient."""
    weight = torch.nn.Parameter(torch.randn(1, 4))

    def segment(images: ImageBatch, tokens: Any) -> SegmentFeatures:
        features = torch.zeros(len(tokens), 1, 1, 1)
        return SegmentFeatures(features, features, None, torch.zeros(1, 1, 1))

    def encode(inputs: EncoderBatch, segments: SegmentTokens | None = None) -> Tensor:
        return weight * (1 + torch.arange(float(len(inputs)))[:, None])

    model.encode_streams = lambda images, prompted: (ImageFeatures((), (weight.detach(),)),) * len(images)
    model.prompt_encoder.forward = lambda prompts: prompts
    model.segmentation.forward = segment
    model.connector.forward = lambda features: SegmentTokens(features.embedding.flatten(1)[:, None])
    model.fusion.forward = encode


def repeat_pairs(unit: PairBatch, times: int) -> PairBatch:
    """Return a batch of the pairs, `times` each, as if no two were equal."""
    rows = torch.arange(len(unit) * times)
    keys = tuple(map(str, range(len(rows))))
    queries, targets = repeat_rows(unit.queries, times), repeat_rows(unit.targets, times)
    return PairBatch(keys, queries, targets, None, PairIds(rows, rows + len(rows)))


def repeat_rows(rows: EncoderBatch, times: int) -> EncoderBatch:
    """Return a batch of the rows, `times` each, with as many times the images and prompts."""
    images, prompts = rows.images, rows.prompts
    return replace(
        rows,
        input_ids=rows.input_ids.repeat(times, 1),
        attention_mask=rows.attention_mask.repeat(times, 1),
        position_ids=None if rows.position_ids is None else rows.position_ids.repeat(1, times, 1),
        images=ImageBatch(images.vision * times, images.segmentation * times),
        prompts=PromptBatch(prompts.prompts * times, shift(prompts.image_index, len(images), times)),
        use_rows=shift(rows.use_rows, len(rows), times),
        use_image_index=shift(rows.use_image_index, len(images), times),
        prompt_rows=shift(rows.prompt_rows, len(rows), times),
    )


def shift(index: Tensor, size: int, times: int) -> Tensor:
    """Return an index `times` over, each time `size` further."""
    return torch.cat([index + number * size for number in range(times)])


def share(seconds: float, step_seconds: Sequence[float], step_rows: int, rows: int) -> float:
    """Return the bookkeeping's share of a step of `rows`, whose networks cost per row what the measured steps cost."""
    per_row = sorted(step_seconds)[len(step_seconds) // 2] / step_rows
    return round(seconds / (per_row * rows), 5)
