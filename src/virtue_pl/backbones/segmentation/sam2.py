"""SAM 2.1 on transformers' own classes: prompt encoder, image encoder, and two-way transformer.

Shapes: d = embed_dim (256 in every release); on a canvas of 1024 pixels the feature map has 64x64 cells, the predicted
masks 256x256. The paper's feature (VIRTUE, section 3) is the image side of the two-way transformer, before any mask is
predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.models.sam2 import modeling_sam2 as stock
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.segmentation.hiera import Hiera, images_at_once
from virtue_pl.backbones.segmentation.prompt_tokens import dense_embeddings, labelled_points, pad_rows, padding_last
from virtue_pl.backbones.segmentation.sam2_weights import load_sam2
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import FeatureWidths, PromptBatch, PromptTokens, SegmentFeatures, VirtueError, cast

STRIDE = 16
"""Pixels along the side of a cell of the feature map."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""SAM 2's normalisation of pixels in [0, 1], which is ImageNet's."""
NUM_MASK_TOKENS = 4


class Sam2PromptEncoder(PromptEncoder):
    """SAM 2's prompt encoder for rows that hold any number of points, boxes and masks, or nothing.

    A row's tokens are its boxes' corners, its points, and one padding point, which VIRTUE always has. A mask moves the
    dense embedding; several masks mean the area that they cover together.

    Args:
        weights: an original checkpoint (`.pt`), a folder or hub name of transformers' Sam2, or None for random ones.
        embed_dim: d.
        image_size: height and width of the square canvas in pixels, divisible by 32.
        grid_size: an empty prompt becomes `grid_size` x `grid_size` inside points (the paper: 3).

    Example:
        >>> Sam2PromptEncoder(embed_dim=32, image_size=64).feature_size
        (4, 4)
    """

    def __init__(
        self, weights: str | Path | None = None, embed_dim: int = 256, image_size: int = 1024, grid_size: int = 3
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.feature_size = (feature_grid_size(image_size),) * 2
        self.image_size = image_size
        self.encoder = stock.Sam2PromptEncoder(
            Sam2PromptEncoderConfig(hidden_size=embed_dim, image_size=image_size, patch_size=STRIDE)
        )
        self.grid = grid_points(grid_size)
        if weights is not None:
            load_sam2({"prompt_encoder.": self.encoder}, weights)

    def forward(self, prompts: PromptBatch) -> PromptTokens:
        rows = self.fill_empty(prompts)
        points, labels, counts = labelled_points(rows, padding_last, prompts.image_index.device)
        no_mask = self.encoder.no_mask_embed.weight
        sparse, valid = pad_rows(self.embed_points(points, labels) if rows else no_mask[:0], counts)
        dense = dense_embeddings(
            no_mask, self.feature_size, rows, self.encoder.mask_input_size, self.encoder.mask_embed
        )
        positions = self.image_positions()
        return PromptTokens(sparse, valid, dense, positions, prompts.image_index, counts=tuple(counts))

    def embed_points(
        self, points: Float[Tensor, "tokens 2"], labels: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens d"]:
        """Return the embedded points. The encoder adds one padding point behind the last, which is dropped."""
        pixels = points * self.image_size
        return self.encoder(pixels[None, None], labels[None, None], None, None)[0][0, 0, :-1]

    def image_positions(self) -> Float[Tensor, "d height width"]:
        """Return the positional encoding of the feature map's cells, from the points' own matrix."""
        height, width = self.feature_size
        matrix = self.encoder.shared_embedding.positional_embedding
        y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        return self.encoder.shared_embedding(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)).permute(2, 0, 1)


def feature_grid_size(image_size: int) -> int:
    """Return the cells along the feature map's side.

    Raises VirtueError for a canvas that the coarsest map, of stride 32, does not tile.
    """
    if image_size % (2 * STRIDE):
        raise VirtueError(f"image_size is {image_size}, expected a multiple of {2 * STRIDE} (SAM 2: 1024)")
    return image_size // STRIDE


class Sam2Backbone(SegmentationBackbone):
    """SAM 2's image encoder, frozen, and its two-way transformer. Both streams of `SegmentFeatures` have width d.

    Without `predict_masks` only what reaches the paper's feature is computed: two of the pyramid's four levels, and no
    mask. The predicted mask is SAM 2's first, the one it means for unambiguous prompts. The defaults are base-plus's.

    Args:
        weights: an original checkpoint (`.pt`), a folder or hub name of transformers' Sam2, or None for random ones.
        width: channels of the image encoder's first stage; every stage doubles them.
        num_heads: heads of the first stage's attention; doubled like the width.
        blocks: number of blocks of each stage.
        global_attention: indices of the blocks that attend to the whole image.
        windows: cells along the side of the other blocks' windows, by stage.
        position_grid: height and width of the learned positions, which are interpolated to the image.
        embed_dim: d, the prompt encoder's too.
        image_size: height and width of the square canvas in pixels, the prompt encoder's too.
        predict_masks: also return `SegmentFeatures.mask_logits`, which a connector may read and validation draws.
        dtype: type of the weights, "float32" or, where all are frozen, "bfloat16".

    Example:
        >>> sizes = {"width": 8, "num_heads": 1, "blocks": (1, 1, 1, 1), "global_attention": (), "embed_dim": 32}
        >>> backbone = Sam2Backbone(**sizes, image_size=64)
        >>> backbone.image_features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0].shape
        torch.Size([1, 32, 4, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str | Path | None = None,
        width: int = 112,
        num_heads: int = 2,
        blocks: tuple[int, ...] = (2, 3, 16, 3),
        global_attention: tuple[int, ...] = (12, 16, 20),
        windows: tuple[int, ...] = (8, 4, 14, 7),
        position_grid: tuple[int, int] = (14, 14),
        embed_dim: int = 256,
        image_size: int = 1024,
        predict_masks: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        feature_grid_size(image_size)
        self.image_size = image_size
        self.predict_masks = predict_masks
        self.widths = FeatureWidths(embed_dim, embed_dim)
        self.vision_encoder: Any = stock.Sam2VisionModel(
            vision_config(width, num_heads, blocks, global_attention, windows, position_grid, embed_dim)
        )
        decoder_config = Sam2MaskDecoderConfig(hidden_size=embed_dim)
        decoder_config._attn_implementation = "sdpa"
        self.hiera = Hiera(self.vision_encoder.backbone)
        self.mask_decoder: Any = stock.Sam2MaskDecoder(decoder_config)
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights is not None:
            load_sam2(
                {
                    "vision_encoder.": self.vision_encoder,
                    "mask_decoder.": self.mask_decoder,
                    "no_memory_embedding": self.no_memory_embedding,
                },
                weights,
            )
        for frozen in (self.vision_encoder, self.mask_decoder.conv_s0, self.mask_decoder.conv_s1):
            frozen.requires_grad_(False)
        networks: tuple[Any, ...] = (self.vision_encoder, self.mask_decoder)
        for network in networks:
            network.to(weights_dtype(dtype))
        self.no_memory_embedding.data = self.no_memory_embedding.data.to(weights_dtype(dtype))

    @torch.no_grad()
    def image_features(
        self, pixels: Shaped[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        """Return the pyramid's level of stride 16; with `predict_masks` behind the levels of stride 4 and 8.

        The finer levels are those that the mask decoder reads. pixels: uint8, or float in [0, 1], normalised here.
        """
        maps = [self.pyramid(self.normalise(images)) for images in pixels.split(images_at_once(pixels))]
        return tuple(torch.cat(levels) for levels in zip(*maps, strict=True))

    def normalise(self, images: Shaped[Tensor, "images 3 size size"]) -> Float[Tensor, "images 3 size size"]:
        """Return the normalised images in the type of the weights, from one copy that is changed in place."""
        unit = torch.empty(images.shape, dtype=self.mean.dtype, device=images.device).copy_(images)
        if images.dtype == torch.uint8:
            unit.div_(255.0)  # a whole number takes six times as long
        return unit.sub_(self.mean).div_(self.std).to(self.no_memory_embedding.dtype)

    def pyramid(
        self, pixels: Float[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        """Return the levels of normalised images."""
        stages = self.hiera.stages(pixels)
        laterals = [
            conv(stage.permute(0, 3, 1, 2))
            for conv, stage in zip(self.vision_encoder.neck.convs, self.read_stages(stages), strict=False)
        ]
        level = laterals[1] + interpolate(laterals[0].float(), scale_factor=2.0, mode="nearest").to(laterals[1].dtype)
        if not self.predict_masks:
            return (level,)
        return self.mask_decoder.conv_s0(laterals[3]), self.mask_decoder.conv_s1(laterals[2]), level

    def read_stages(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Return the image encoder's stages that reach an output, coarsest first, in the neck's order."""
        return list(stages[::-1] if self.predict_masks else stages[:1:-1])

    def fingerprint(self) -> str:
        networks = [self.vision_encoder, self.mask_decoder.conv_s0, self.mask_decoder.conv_s1]
        return fingerprint_of(networks, self.mean, self.std, self.image_size, self.predict_masks)

    def forward(
        self, features: tuple[Float[Tensor, "images channels height width"], ...], tokens: PromptTokens
    ) -> SegmentFeatures:
        *fine, level = features
        tokens = cast(tokens, level.dtype)
        image = (level + self.no_memory_embedding.reshape(1, -1, 1, 1))[tokens.image_index]
        mask_tokens, embedding = self.read_prompts(image + tokens.dense, tokens)
        logits = (
            self.mask_logits(embedding, mask_tokens, *(feature[tokens.image_index] for feature in fine))
            if self.predict_masks
            else None
        )
        return SegmentFeatures(embedding, image, logits, tokens.image_positions, tokens.focus)

    def read_prompts(
        self, keys: Float[Tensor, "prompts d height width"], tokens: PromptTokens
    ) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d height width"]]:
        """Return the two-way transformer's first mask token and image side.

        Its attention has no mask, so that prompts of equal token count go together.
        """
        mask_tokens, embedding = keys.new_zeros(len(keys), keys.shape[1]), torch.zeros_like(keys)
        decoder = self.mask_decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        for count, rows in tokens.rows_by_count():
            queries = torch.cat([own.expand(len(rows), -1, -1), tokens.sparse[rows, :count]], dim=1)[:, None]
            maps = keys[rows]
            read, image_tokens = self.two_way(queries, maps, tokens.image_positions.expand_as(maps))
            mask_tokens = mask_tokens.index_copy(0, rows, read[:, 0, -count - NUM_MASK_TOKENS])
            embedding = embedding.index_copy(0, rows, image_tokens[:, 0].transpose(1, 2).reshape(maps.shape))
        return mask_tokens, embedding

    def two_way(
        self,
        queries: Float[Tensor, "rows 1 tokens d"],
        keys: Float[Tensor, "rows d height width"],
        positions: Float[Tensor, "rows d height width"],
    ) -> tuple[Float[Tensor, "rows 1 tokens d"], Float[Tensor, "rows 1 image_tokens d"]]:
        """Return both sides of the two-way transformer.

        Its last attention changes the tokens alone, and is left out where no mask is predicted.
        """
        transformer = self.mask_decoder.transformer
        if self.predict_masks:
            return transformer(queries, keys, positions, attention_similarity=None)
        read = queries
        image_tokens, image_positions = (each.flatten(2).transpose(1, 2)[:, None] for each in (keys, positions))
        for layer in transformer.layers:
            read, image_tokens, _ = layer(
                queries=read,
                keys=image_tokens,
                query_point_embedding=queries,
                key_point_embedding=image_positions,
                attention_similarity=None,
            )
        return read, image_tokens

    def mask_logits(
        self,
        embedding: Float[Tensor, "prompts d height width"],
        mask_tokens: Float[Tensor, "prompts d"],
        finest: Float[Tensor, "prompts finest_channels 4*height 4*width"],
        finer: Float[Tensor, "prompts finer_channels 2*height 2*width"],
    ) -> Float[Tensor, "prompts 4*height 4*width"]:
        """Return the map, upscaled twice with the image's finer features, its channels weighted by the mask token."""
        decoder = self.mask_decoder
        pixels = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(embedding) + finer))
        pixels = decoder.activation(decoder.upscale_conv2(pixels) + finest)
        return torch.einsum("pc,pchw->phw", decoder.output_hypernetworks_mlps[0](mask_tokens), pixels)


def weights_dtype(name: str) -> torch.dtype:
    """Return the torch type of a name. Raises VirtueError for any but float32 and bfloat16."""
    if name not in ("float32", "bfloat16"):
        raise VirtueError(f"dtype is {name!r}, expected float32 or bfloat16")
    return torch.float32 if name == "float32" else torch.bfloat16


def vision_config(
    width: int,
    num_heads: int,
    blocks: Sequence[int],
    global_attention: Sequence[int],
    windows: Sequence[int],
    position_grid: Sequence[int],
    embed_dim: int,
) -> Sam2VisionConfig:
    """Return transformers' config of SAM 2's image encoder. Raises VirtueError where the stages are not four."""
    if len(blocks) != 4 or len(windows) != 4:
        raise VirtueError(
            f"blocks {list(blocks)} and windows {list(windows)}, expected four each: SAM 2's image encoder has four"
            " stages"
        )
    channels = [width * 2**stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=num_heads,
        blocks_per_stage=list(blocks),
        embed_dim_per_stage=channels,
        num_attention_heads_per_stage=[num_heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(windows),
        global_attention_blocks=list(global_attention),
        window_positional_embedding_background_size=list(position_grid),
    )
    return Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=channels[::-1], fpn_hidden_size=embed_dim)
