"""Batches of made-up rows for an estimate, on the meta device: images of one size, and texts of a number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from virtue_pl.engine.estimation.meta_autocast import MetaAutocast
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.region_collator import RegionCollator
from virtue_pl.types import (
    NO_FEATURES,
    EmbeddingInput,
    EncoderBatch,
    ImageFeatures,
    PairBatch,
    Region,
    Sample,
    ShardImageBatch,
    VirtueError,
)

STORED_DTYPE = torch.float16
"""Type of stored features, as configs/overlays/features/store_features.yaml stores them."""


@dataclass(frozen=True)
class RowSizes:
    """Sizes of the rows of a batch.

    image: height and width in pixels. query_tokens, target_tokens: of texts, beside images and what the input format
    adds. target_images: every target is an image, too. negatives: hard negatives of a query, texts. features: the
    images' frozen features are read from a store, and no pixels.

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
    stored = stored_features(model, sizes) if sizes.features else NO_FEATURES
    return lambda count: make_batch(model, sizes, count, stored).to("meta")


def make_batch(model: Any, sizes: RowSizes, count: int, stored: ImageFeatures = NO_FEATURES) -> Any:
    """Return a training batch of `count` made-up rows, as the model's collator makes them, which are all alike.

    stored: the features of an image, which stand for its pixels. Raises VirtueError for a model whose rows are
    embeddings.
    """
    collator = with_one_mode(model.collator)
    batch = collator.collate_train([make_sample(sizes, number, stored) for number in range(count)])
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


def with_one_mode(collator: Any) -> Any:
    """Return a model's collator, whose every row has the prompt mode that is drawn most often: rows are alike."""
    name = {ContrastiveCollator: "train_modes", RegionCollator: "modes"}.get(type(collator))
    if name is not None:
        shares = getattr(collator, name)
        setattr(collator, name, {max(shares, key=shares.__getitem__): 1.0})
    return collator


def stored_features(model: Any, sizes: RowSizes) -> ImageFeatures:
    """Return an image's stored features, on the meta device, as a model on it computes them; none for one without any.

    A collator that mirrors images reads stored features of half of them: none are counted on.
    """
    collator = model.collator
    if not hasattr(collator, "collate_images") or getattr(collator, "flip", False):
        return NO_FEATURES
    images = collator.collate_images([make_image(sizes, 0)]).to("meta")
    if not len(images):
        return NO_FEATURES
    with torch.no_grad(), MetaAutocast(torch.bfloat16):  # whatever the precision, sizes are the same
        (found,) = model.predict_step(ShardImageBatch("", "", "", ("0",), images, True), 0)
    return copy_features(found)


def copy_features(features: ImageFeatures) -> ImageFeatures:
    """Return features with memory of their own, on the meta device."""
    return ImageFeatures(
        *(
            tuple(torch.empty_like(level, dtype=STORED_DTYPE, device="meta") for level in levels)
            for levels in (features.segmentation, features.vision)
        )
    )


def make_sample(sizes: RowSizes, number: int, stored: ImageFeatures = NO_FEATURES) -> Sample:
    """Return a made-up sample: an image with a region that has a box and a mask, and texts of no more than a word."""
    mask = torch.zeros(sizes.image, dtype=torch.bool)
    mask[: sizes.image[0] // 2, : sizes.image[1] // 2] = True
    image = make_image(sizes, number)
    query = EmbeddingInput("", (image,), image_keys=(f"query {number}",), features=(copy_features(stored),))
    of_target = (make_image(sizes, number),) if sizes.target_images else ()
    keys = tuple(f"target {number}" for _ in of_target)
    target = EmbeddingInput("a", of_target, image_keys=keys, features=tuple(copy_features(stored) for _ in of_target))
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
