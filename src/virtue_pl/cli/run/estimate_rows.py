"""Batches of made-up rows for an estimate, on the meta device: images of one size, and texts of a number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from virtue_pl.types import (
    EmbeddingInput,
    EncoderBatch,
    ImageFeatures,
    PairBatch,
    Region,
    Sample,
    VirtueError,
    cast,
)

STORED_DTYPE = torch.float16
"""Of stored features, unless configs/overlays/features/store_features.yaml is changed."""


@dataclass(frozen=True)
class RowSizes:
    """Sizes of the rows of a batch.

    image: height and width in pixels. query_tokens, target_tokens: of texts, beside images and what the input format
    adds. target_images: every target is an image, too. negatives: hard negatives of a query, texts. features: images
    come with stored features, in `STORED_DTYPE`.

    Example:
        >>> RowSizes().image
        (480, 640)
    """

    image: tuple[int, int] = (480, 640)
    query_tokens: int = 40
    target_tokens: int = 20
    target_images: bool = False
    negatives: int = 0
    features: bool = False


def batch_maker(model: Any, sizes: RowSizes) -> Callable[[int], Any]:
    """Return what makes a training batch of so many rows of a model's, on the meta device. The model is on it, too."""

    def make(count: int) -> Any:
        batch = make_batch(model, sizes, count).to("meta")
        return with_features(model, batch) if sizes.features else batch

    return make


@torch.no_grad()
def with_features(model: Any, batch: Any) -> Any:
    """Return a batch with stored features of its images in place of their pixels; another model's as it is."""
    if isinstance(batch, PairBatch):
        parts = {name: getattr(batch, name) for name in ("queries", "targets", "negatives")}
        encoded = {name: store_images(model, part) for name, part in parts.items() if part is not None}
        return replace(batch, **encoded)
    if not len(batch.images):
        return batch
    levels = model.frozen_features(batch.images)
    features = [ImageFeatures(segmentation=one) for one in levels]
    return replace(batch, images=batch.images.with_features([cast(one, STORED_DTYPE) for one in features]))


def store_images(model: Any, inputs: EncoderBatch) -> EncoderBatch:
    """Return the rows with stored features in place of pixels."""
    if not len(inputs.images):
        return inputs
    features = [cast(one, STORED_DTYPE) for one in model.image_features(inputs.images)]
    return inputs.with_images(inputs.images.with_features(features))


def make_batch(model: Any, sizes: RowSizes, count: int) -> Any:
    """Return a training batch of `count` made-up rows, as the model's collator makes them.

    Raises VirtueError for a model whose rows are embeddings.
    """
    batch = model.collator.collate_train([make_sample(sizes, number) for number in range(count)])
    if isinstance(batch, list):
        raise VirtueError(
            f"estimate: {type(model).__name__} learns from stored embeddings, expected a model that encodes images"
        )
    if not isinstance(batch, PairBatch):
        return batch
    targets, negatives = sizes.target_tokens, batch.negatives
    return replace(
        batch,
        queries=lengthen(batch.queries, sizes.query_tokens),
        targets=lengthen(batch.targets, targets),
        negatives=None if negatives is None else lengthen(negatives, targets),
    )


def make_sample(sizes: RowSizes, number: int) -> Sample:
    """Return a made-up sample: an image with a region that has a box and a mask, and texts of no more than a word."""
    mask = torch.zeros(sizes.image, dtype=torch.bool)
    mask[: sizes.image[0] // 2, : sizes.image[1] // 2] = True
    image = make_image(sizes, number)
    query = EmbeddingInput("", (image,), image_keys=(f"query {number}",))
    of_target = (make_image(sizes, number),) if sizes.target_images else ()
    keys = tuple(f"target {number}" for _ in of_target)
    target = EmbeddingInput("a", of_target, image_keys=keys)
    negatives = tuple(EmbeddingInput("a") for _ in range(sizes.negatives))
    return Sample(
        f"made up/{number}", "made up", query, target, negatives, Region(torch.tensor([0.0, 0.0, 0.5, 0.5]), mask)
    )


def make_image(sizes: RowSizes, number: int) -> Tensor:
    """Return an image of one color."""
    return torch.full((3, *sizes.image), 16 * number % 256, dtype=torch.uint8)


def lengthen(batch: EncoderBatch, more: int) -> EncoderBatch:
    """Return the rows, which are equally long, with `more` further tokens each."""
    if not more:
        return batch
    ids, mask = (
        torch.cat([part, part[:, -1:].expand(-1, more)], dim=1) for part in (batch.input_ids, batch.attention_mask)
    )
    positions = batch.position_ids
    if positions is not None:
        positions = torch.cat([positions, positions[..., -1:] + 1 + torch.arange(more)], dim=-1)
    longer = EncoderBatch(
        ids,
        mask,
        batch.images,
        batch.prompts,
        batch.use_rows,
        positions,
        batch.use_image_index,
        batch.prompt_rows,
        batch.segments,
    )
    _ = longer.layout  # read on the host, before the rows go to the meta device
    return longer
