"""Tokens of SAM's prompt encoders, for rows of any number of points, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from virtue_pl.backbones.segmentation.dense_hints import mask_coverage
from virtue_pl.types import VisualPrompt

PADDING, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3
"""SAM's labels beside 0 (outside) and 1 (inside)."""
MASK_SCALE, MASK_SHIFT = 20.0, -10.0
"""A mask is prompted as logits, +10 inside and -10 outside, as SAM 2 does with its own; SAM has no exact masks."""

LabelledPoints = tuple[Float[Tensor, "tokens 2"], Int[Tensor, " tokens"]]


def labelled_points(prompt: VisualPrompt) -> LabelledPoints:
    """Return a prompt's points and box corners, normalised, in segment-anything's order and with its labels."""
    padding = int(len(prompt.points) > 0 and not len(prompt.boxes))
    corners = prompt.point_labels.new_tensor([TOP_LEFT, BOTTOM_RIGHT]).repeat(len(prompt.boxes))
    points = torch.cat([prompt.points, prompt.points.new_zeros(padding, 2), prompt.boxes.reshape(-1, 2)])
    return points, torch.cat([prompt.point_labels, prompt.point_labels.new_full((padding,), PADDING), corners])


def sparse_tokens(
    encoder: PromptEncoder, prompts: Sequence[VisualPrompt], device: torch.device
) -> tuple[Float[Tensor, "rows tokens d"], Bool[Tensor, "rows tokens"]]:
    """Return every row's labelled points, embedded and padded with zeros, and which tokens are real."""
    rows = [labelled_points(prompt) for prompt in prompts]
    counts = [len(labels) for _, labels in rows]
    points = torch.cat([points for points, _ in rows] or [torch.zeros(0, 2, device=device)])
    labels = torch.cat([labels for _, labels in rows] or [torch.zeros(0, dtype=torch.long, device=device)])
    return pad_rows(embed_points(encoder, points, labels), counts)


def pad_rows(
    tokens: Float[Tensor, "all_tokens d"], counts: Sequence[int]
) -> tuple[Float[Tensor, "rows tokens d"], Bool[Tensor, "rows tokens"]]:
    """Return tokens row by row, padded with zeros behind each row's own, and which are real.

    tokens: those of all rows, one after the other; counts: each row's number of them.
    """
    index = torch.arange(max(counts, default=0), device=tokens.device)
    valid = index[None] < torch.tensor(counts, device=tokens.device, dtype=torch.long)[:, None]
    return tokens.new_zeros(*valid.shape, tokens.shape[1]).masked_scatter(valid[..., None], tokens), valid


def dense_embeddings(
    no_mask: Float[Tensor, "1 d"],
    feature_size: tuple[int, int],
    rows: Sequence[VisualPrompt],
    mask_size: tuple[int, int],
    embed: Callable[[Float[Tensor, "masked 1 mask_height mask_width"]], Float[Tensor, "masked d height width"]],
) -> Float[Tensor, "rows d height width"]:
    """Return the mask prompt's embedding where a row has one, and the learned "no mask" elsewhere.

    embed: embeds masks given as logits.
    """
    masked = [index for index, row in enumerate(rows) if len(row.masks)]
    empty = no_mask.reshape(1, -1, 1, 1).expand(len(rows), -1, *feature_size)
    if not masked:
        return empty
    shares = torch.stack([mask_coverage(rows[index].masks, mask_size) for index in masked])
    embedded = embed((shares * MASK_SCALE + MASK_SHIFT).to(empty.dtype))
    return empty.to(embedded.dtype).index_copy(0, torch.tensor(masked, device=empty.device), embedded)


def embed_points(
    encoder: PromptEncoder, points: Float[Tensor, "points 2"], labels: Int[Tensor, " points"]
) -> Float[Tensor, "points d"]:
    """Return each point's position plus the kind of point it is; a padding point has no position.

    The position is half a pixel further, as segment-anything shifts it.
    """
    height, width = encoder.input_image_size
    pixels = points * points.new_tensor([width, height]) + 0.5
    positions = encoder.pe_layer.forward_with_coords(pixels[None], encoder.input_image_size)[0]
    kinds = torch.cat([encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)])
    return torch.where(labels[:, None] == PADDING, 0.0, positions) + kinds[labels - PADDING]
