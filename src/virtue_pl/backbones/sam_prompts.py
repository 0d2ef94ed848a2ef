"""segment-anything's point tokens for rows of any number of points and boxes: what each row gets there alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from virtue_pl.types import VisualPrompt

PADDING, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3
"""segment-anything's labels beside 0 (outside) and 1 (inside)."""

LabelledPoints = tuple[Float[Tensor, "tokens 2"], Int[Tensor, " tokens"]]


def labelled_points(prompt: VisualPrompt) -> LabelledPoints:
    """A prompt's points and box corners, normalised, in segment-anything's order and with its labels."""
    padding = int(len(prompt.points) > 0 and not len(prompt.boxes))
    corners = prompt.point_labels.new_tensor([TOP_LEFT, BOTTOM_RIGHT]).repeat(len(prompt.boxes))
    points = torch.cat([prompt.points, prompt.points.new_zeros(padding, 2), prompt.boxes.reshape(-1, 2)])
    return points, torch.cat([prompt.point_labels, prompt.point_labels.new_full((padding,), PADDING), corners])


def sparse_tokens(
    encoder: PromptEncoder, prompts: Sequence[VisualPrompt], device: torch.device
) -> tuple[Float[Tensor, "rows tokens d"], Bool[Tensor, "rows tokens"]]:
    """Every row's labelled points, embedded, and which tokens are real; zeros behind each row's own."""
    rows = [labelled_points(prompt) for prompt in prompts]
    counts = [len(labels) for _, labels in rows]
    points = torch.cat([points for points, _ in rows] or [torch.zeros(0, 2, device=device)])
    labels = torch.cat([labels for _, labels in rows] or [torch.zeros(0, dtype=torch.long, device=device)])
    valid = torch.arange(max(counts, default=0), device=device)[None] < torch.tensor(counts, device=device, dtype=torch.long)[:, None]
    embedded = embed_points(encoder, points, labels)
    return embedded.new_zeros(*valid.shape, encoder.embed_dim).masked_scatter(valid[..., None], embedded), valid


def embed_points(encoder: PromptEncoder, points: Float[Tensor, "points 2"], labels: Int[Tensor, " points"]) -> Float[Tensor, "points d"]:
    """Position (half a pixel further, as segment-anything shifts it) plus what kind of point it is; a padding point has no position."""
    height, width = encoder.input_image_size
    pixels = points * points.new_tensor([width, height]) + 0.5
    positions = encoder.pe_layer.forward_with_coords(pixels[None], encoder.input_image_size)[0]
    kinds = torch.cat([encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)])
    return torch.where(labels[:, None] == PADDING, 0.0, positions) + kinds[labels - PADDING]
