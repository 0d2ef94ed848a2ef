"""Tokens of SAM's prompt encoders, for rows of any number of points, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from virtue_pl.backbones.segmentation.dense_hints import mask_coverage
from virtue_pl.types import VisualPrompt, index_tensors

PADDING, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3
"""SAM's labels beside 0 (outside) and 1 (inside)."""
FIXED_LABELS = (TOP_LEFT, BOTTOM_RIGHT, PADDING)
MASK_SCALE, MASK_SHIFT = 20.0, -10.0
"""A mask is prompted as logits, +10 inside and -10 outside, as SAM 2 does with its own; SAM has no exact masks."""

TokenOrder = Callable[[Sequence[int], Sequence[int], int], Sequence[int]]
"""Puts a row's tokens in order, given the numbers of its points, of its boxes' corners, and of a padding point."""


def padding_between(points: Sequence[int], corners: Sequence[int], padding: int) -> Sequence[int]:
    """Return segment-anything's order: points, a padding point if there are points but no box, box corners."""
    return [*points, *([padding] if points and not corners else []), *corners]


def padding_last(points: Sequence[int], corners: Sequence[int], padding: int) -> Sequence[int]:
    """Return SAM 2's order as VIRTUE uses it: box corners, points, and always a padding point."""
    return [*corners, *points, padding]


class LabelledPoints(NamedTuple):
    """The labelled points of several prompts, one after the other, normalised, with SAM's labels.

    counts: how many each prompt has, on the host.

    Example:
        >>> prompt = VisualPrompt(points=torch.tensor([[0.5, 0.5]]), point_labels=torch.tensor([1]))
        >>> labelled_points([prompt], padding_last, torch.device("cpu")).labels.tolist()
        [1, -1]
    """

    points: Float[Tensor, "tokens 2"]
    labels: Int[Tensor, " tokens"]
    counts: list[int]


def labelled_points(prompts: Sequence[VisualPrompt], order: TokenOrder, device: torch.device) -> LabelledPoints:
    """Return the points, box corners and padding points of all prompts, in `order` within each.

    They are put together on the host as indices; the device is given these, and starts as much for many as for one.
    """
    num_points = sum(len(prompt.points) for prompt in prompts)
    padding = num_points + 2 * sum(len(prompt.boxes) for prompt in prompts)
    rows, point, corner = [], 0, num_points
    for prompt in prompts:
        points, corners = range(point, point + len(prompt.points)), range(corner, corner + 2 * len(prompt.boxes))
        rows.append(order(points, corners, padding))
        point, corner = points.stop, corners.stop
    chosen = [number for row in rows for number in row]
    kinds = [label_number(number, num_points, padding) for number in chosen]
    index, label_index, fixed = index_tensors([chosen, kinds, FIXED_LABELS], device)
    corner_points = [prompt.boxes.reshape(-1, 2) for prompt in prompts]
    no_point = prompts[0].points.new_zeros(1, 2) if prompts else torch.zeros(1, 2, device=device)
    together = torch.cat([*(prompt.points for prompt in prompts), *corner_points, no_point])
    labels = torch.cat([*(prompt.point_labels for prompt in prompts), fixed])
    return LabelledPoints(together[index], labels[label_index], [len(row) for row in rows])


def label_number(number: int, num_points: int, padding: int) -> int:
    """Return where the label of a point stands: points' own labels come first, behind them `FIXED_LABELS`.

    number: a point's below `num_points`; a corner's, of which every other one is top left, below `padding`.
    """
    if number < num_points:
        return number
    return num_points + ((number - num_points) % 2 if number < padding else 2)


def sparse_tokens(
    encoder: PromptEncoder, prompts: Sequence[VisualPrompt], device: torch.device
) -> tuple[Float[Tensor, "rows tokens d"], Bool[Tensor, "rows tokens"], tuple[int, ...]]:
    """Return every row's labelled points, embedded and padded with zeros, which tokens are real, and how many."""
    points, labels, counts = labelled_points(prompts, padding_between, device)
    return *pad_rows(embed_points(encoder, points, labels), counts), tuple(counts)


def pad_rows(
    tokens: Float[Tensor, "all_tokens d"], counts: Sequence[int]
) -> tuple[Float[Tensor, "rows tokens d"], Bool[Tensor, "rows tokens"]]:
    """Return tokens row by row, padded with zeros behind each row's own, and which are real.

    tokens: those of all rows, one after the other; counts: each row's number of them.
    """
    longest = max(counts, default=0)
    positions = [row * longest + column for row, count in enumerate(counts) for column in range(count)]
    index, lengths = index_tensors([positions, counts], tokens.device)
    valid = torch.arange(longest, device=tokens.device)[None] < lengths[:, None]
    padded = tokens.new_zeros(len(counts) * longest, tokens.shape[1]).index_copy(0, index, tokens)
    return padded.view(len(counts), longest, -1) if longest else padded.view(len(counts), 0, tokens.shape[1]), valid


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
    shares = mask_coverage([rows[number] for number in masked], mask_size)[:, None]
    embedded = embed((shares * MASK_SCALE + MASK_SHIFT).to(empty.dtype))
    (index,) = index_tensors([masked], empty.device)
    return empty.to(embedded.dtype).index_copy(0, index, embedded)


def embed_points(
    encoder: PromptEncoder, points: Float[Tensor, "points 2"], labels: Int[Tensor, " points"]
) -> Float[Tensor, "points d"]:
    """Return each point's position plus the kind of point it is; a padding point has no position.

    The position is half a pixel further, as segment-anything shifts it.
    """
    height, width = encoder.input_image_size
    pixels = torch.stack([points[:, 0] * width, points[:, 1] * height], dim=1) + 0.5
    positions = encoder.pe_layer.forward_with_coords(pixels[None], encoder.input_image_size)[0]
    kinds = torch.cat([encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)])
    return torch.where(labels[:, None] == PADDING, 0.0, positions) + kinds[labels - PADDING]
