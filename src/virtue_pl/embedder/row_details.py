"""Details of embedded rows: their tokens, and what the segmentation model takes their prompts for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from virtue_pl.metrics.mask_iou import expected_iou
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import EncoderBatch


@dataclass(frozen=True)
class RowDetails:
    """Facts of a row that was embedded.

    tokens: those that the language model reads, segment tokens included. box: xyxy around the mask that is predicted
    for the row's first prompt, normalised; None for an empty mask. iou: `expected_iou` of that mask; None where none is
    predicted.

    Example:
        >>> RowDetails(tokens=12).iou is None
        True
    """

    tokens: int
    box: tuple[float, float, float, float] | None = None
    iou: float | None = None


def inspect_batch(model: EmbeddingModel, batch: EncoderBatch) -> tuple[EncoderBatch, list[RowDetails]]:
    """Return a batch, with its prompts' segment features where it has any, and the details of each of its rows.

    Encoding the batch then does not run the segmentation model again.
    """
    tokens = model.token_counts(batch)
    found = [RowDetails(count) for count in tokens]
    if not isinstance(model, Virtue) or not len(batch.prompts):
        return batch, found
    segments = model.segment(batch)
    batch = batch.with_images(batch.images, [segments])
    if segments.mask_logits is None:
        return batch, found
    logits = segments.mask_logits.float()
    boxes = boxes_around(logits > 0).tolist()
    ious = expected_iou(logits > 0, logits.sigmoid()).tolist()
    for number, row in reversed(list(enumerate(batch.layout.prompt_rows))):
        if not batch.prompts.prompts[number].is_empty:
            box = tuple(boxes[number]) if boxes[number][2] else None
            found[row] = RowDetails(tokens[row], box, ious[number])  # type: ignore[arg-type]
    return batch, found


def boxes_around(masks: Bool[Tensor, "masks height width"]) -> Float[Tensor, "masks 4"]:
    """Return the box around each mask, xyxy, normalised; all zeros for an empty one.

    Example:
        >>> boxes_around(torch.tensor([[[False, True], [False, False]]]))
        tensor([[0.5000, 0.0000, 1.0000, 0.5000]])
    """
    edges = []
    for axis in (1, 2):
        inside = masks.any(dim=axis).float()  # [masks, width], then [masks, height]
        size = inside.shape[1]
        first, last = inside.argmax(dim=1), size - inside.flip(1).argmax(dim=1)
        edges.append((first / size, last / size))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], dim=1) * masks.flatten(1).any(dim=1, keepdim=True)
