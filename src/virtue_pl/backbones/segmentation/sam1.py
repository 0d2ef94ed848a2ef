"""SAM (the first) on segment-anything's own classes: prompt encoder, image encoder, and two-way transformer.

Shapes: d = embed_dim (256 in every release); on a canvas of 1024 pixels the feature map has 64x64 cells, the predicted
masks 256x256. The paper's feature is the image side of the two-way transformer (VIRTUE, section 3), which SAM has as
SAM 2 has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from segment_anything import modeling as sam
from torch import Tensor, nn

from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.segmentation.prompt_tokens import dense_embeddings, sparse_tokens
from virtue_pl.backbones.strict_weights import load_parts
from virtue_pl.engine.weight_files import load_pickled
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import FeatureWidths, PromptBatch, PromptTokens, SegmentFeatures, VirtueError, cast

STRIDE = 16
"""Pixels along the side of a cell of the feature map."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""SAM's normalisation of pixels in [0, 255]."""
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
NUM_MULTIMASKS = 3


class Sam1PromptEncoder(PromptEncoder):
    """SAM's prompt encoder for rows that hold any number of points, boxes and masks, or nothing.

    Each row gets the tokens that segment-anything gives for it alone (`prompt_tokens`). A mask moves the dense
    embedding; several masks mean the area that they cover together.

    Args:
        weights: an original checkpoint (`.pth`), or None for random ones.
        embed_dim: d.
        image_size: height and width of the square canvas in pixels, divisible by 16.
        grid_size: an empty prompt becomes `grid_size` x `grid_size` inside points (the paper: 3).

    Example:
        >>> Sam1PromptEncoder(embed_dim=32, image_size=64).feature_size
        (4, 4)
    """

    def __init__(
        self, weights: str | Path | None = None, embed_dim: int = 256, image_size: int = 1024, grid_size: int = 3
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.feature_size = (feature_grid_size(image_size),) * 2
        self.encoder = sam.PromptEncoder(embed_dim, self.feature_size, (image_size, image_size), mask_in_chans=16)
        self.grid = grid_points(grid_size)
        if weights is not None:
            load_sam1({"prompt_encoder.": self.encoder}, weights)

    def forward(self, prompts: PromptBatch) -> PromptTokens:
        device = prompts.image_index.device
        rows = self.fill_empty(prompts)
        sparse, valid, counts = sparse_tokens(self.encoder, rows, device)
        dense = dense_embeddings(
            self.encoder.no_mask_embed.weight,
            self.feature_size,
            rows,
            self.encoder.mask_input_size,
            self.encoder.mask_downscaling,
        )
        positions = self.encoder.get_dense_pe()[0]
        return PromptTokens(sparse, valid, dense, positions, prompts.image_index, counts=counts)


class Sam1Backbone(SegmentationBackbone):
    """SAM's image encoder, frozen, and its two-way transformer. Both streams of `SegmentFeatures` have width d.

    Without `predict_masks` only what reaches the paper's feature is computed. The predicted mask is SAM's first, the
    one it means for unambiguous prompts. The defaults are ViT-B's.

    Args:
        weights: an original checkpoint (`.pth`), or None for random ones.
        width, depth, num_heads: sizes of the image encoder.
        global_attention: indices of the blocks that attend to the whole image.
        window: cells along the side of the windows of the other blocks.
        embed_dim: d, the prompt encoder's too.
        image_size: height and width of the square canvas in pixels, the prompt encoder's too.
        predict_masks: also return `SegmentFeatures.mask_logits`, which a connector may read and validation draws.

    Example:
        >>> backbone = Sam1Backbone(width=16, depth=1, num_heads=2, global_attention=(0,), embed_dim=32, image_size=64)
        >>> backbone.image_features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape
        torch.Size([1, 32, 4, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str | Path | None = None,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        global_attention: tuple[int, ...] = (2, 5, 8, 11),
        window: int = 14,
        embed_dim: int = 256,
        image_size: int = 1024,
        predict_masks: bool = False,
    ) -> None:
        super().__init__()
        feature_grid_size(image_size)
        self.image_size = image_size
        self.predict_masks = predict_masks
        self.widths = FeatureWidths(embed_dim, embed_dim)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        sizes = {
            "img_size": image_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "out_chans": embed_dim,
            "window_size": window,
        }
        self.image_encoder: Any = sam.ImageEncoderViT(
            norm_layer=norm, use_rel_pos=True, global_attn_indexes=global_attention, **sizes
        )  # type: ignore[arg-type]
        transformer = sam.TwoWayTransformer(depth=2, embedding_dim=embed_dim, num_heads=8, mlp_dim=2048)
        self.mask_decoder: Any = sam.MaskDecoder(
            transformer_dim=embed_dim, transformer=transformer, num_multimask_outputs=NUM_MULTIMASKS
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights is not None:
            load_sam1({"image_encoder.": self.image_encoder, "mask_decoder.": self.mask_decoder}, weights)
        self.image_encoder.requires_grad_(False)

    @torch.no_grad()
    def image_features(
        self, pixels: Shaped[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        """Return one map, of stride 16. pixels: uint8, or float in [0, 1]; they are normalised here."""
        byte = pixels.to(self.mean.dtype) * (1 if pixels.dtype == torch.uint8 else 255)
        return (self.image_encoder(((byte - self.mean) / self.std).to(next(self.image_encoder.parameters()).dtype)),)

    def fingerprint(self) -> str:
        return fingerprint_of(self.image_encoder, self.mean, self.std, self.image_size)

    def forward(
        self, features: tuple[Float[Tensor, "images channels height width"], ...], tokens: PromptTokens
    ) -> SegmentFeatures:
        image = features[0][tokens.image_index]
        tokens = cast(tokens, self.mask_decoder.iou_token.weight.dtype)
        mask_tokens, embedding = self.read_prompts(image + tokens.dense, tokens)
        logits = self.mask_logits(embedding, mask_tokens) if self.predict_masks else None
        return SegmentFeatures(embedding, image, logits, tokens.image_positions, tokens.focus)

    def read_prompts(
        self, keys: Float[Tensor, "prompts d height width"], tokens: PromptTokens
    ) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d height width"]]:
        """Return the two-way transformer's first mask token and image side.

        Its attention has no mask, so that prompts of equal token count go together.
        """
        own = torch.cat([self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight])
        mask_tokens, embedding = keys.new_zeros(len(keys), keys.shape[1]), torch.zeros_like(keys)
        for count, rows in tokens.rows_by_count():
            queries, maps = torch.cat([own.expand(len(rows), -1, -1), tokens.sparse[rows, :count]], dim=1), keys[rows]
            read, image_tokens = self.two_way(queries, maps, tokens.image_positions.expand_as(maps))
            mask_tokens = mask_tokens.index_copy(0, rows, read[:, 1])
            embedding = embedding.index_copy(0, rows, image_tokens.transpose(1, 2).reshape(maps.shape))
        return mask_tokens, embedding

    def two_way(
        self,
        queries: Float[Tensor, "rows tokens d"],
        keys: Float[Tensor, "rows d height width"],
        positions: Float[Tensor, "rows d height width"],
    ) -> tuple[Float[Tensor, "rows tokens d"], Float[Tensor, "rows image_tokens d"]]:
        """Return both sides of the two-way transformer.

        Its last attention changes the tokens alone, and is left out where no mask is predicted.
        """
        transformer = self.mask_decoder.transformer
        if self.predict_masks:
            return transformer(keys, positions, queries)
        read = queries
        image_tokens, image_positions = (each.flatten(2).transpose(1, 2) for each in (keys, positions))
        for layer in transformer.layers:
            read, image_tokens = layer(queries=read, keys=image_tokens, query_pe=queries, key_pe=image_positions)
        return read, image_tokens

    def mask_logits(
        self, embedding: Float[Tensor, "prompts d height width"], mask_tokens: Float[Tensor, "prompts d"]
    ) -> Float[Tensor, "prompts 4*height 4*width"]:
        """Return the map, upscaled twice, with its channels weighted by the mask token."""
        pixels = self.mask_decoder.output_upscaling(embedding)
        return torch.einsum("pc,pchw->phw", self.mask_decoder.output_hypernetworks_mlps[0](mask_tokens), pixels)


def feature_grid_size(image_size: int) -> int:
    """Return the cells along the feature map's side. Raises VirtueError for a canvas that they do not tile."""
    if image_size % STRIDE:
        raise VirtueError(f"image_size is {image_size}, expected a multiple of {STRIDE} (SAM: 1024)")
    return image_size // STRIDE


def load_sam1(parts: Mapping[str, nn.Module], weights: str | Path) -> None:
    """Load parts of SAM from an original checkpoint.

    Raises VirtueError for a missing tensor, an unknown one, or one of another shape.
    """
    if not Path(weights).is_file():
        raise VirtueError(
            f"weights: {weights} is not there, expected SAM's checkpoint (.pth), or null for random weights"
        )
    state = load_pickled(weights, mmap=True)
    if not isinstance(state, Mapping):
        raise VirtueError(f"weights: {weights} holds a {type(state).__name__}, expected SAM's tensors by name (.pth)")
    strange = sorted(name for name in state if not name.startswith(PARTS))
    if strange:
        raise VirtueError(
            f"weights: {weights} has an unknown {strange[0]}, expected the tensors of SAM alone:"
            f" {', '.join(name + '*' for name in PARTS)}"
        )
    load_parts(parts, state, str(weights), "SAM")
