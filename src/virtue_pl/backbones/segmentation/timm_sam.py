"""A promptable segmentation model of laptop size: any timm backbone under segment-anything's prompt encoder.

Shapes: d = embed_dim; the feature map has stride 16, the predicted masks stride 4. The paper's feature (VIRTUE,
section 3) is the image side of the two-way transformer, which is segment-anything's own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from segment_anything import modeling as sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.segmentation.dense_hints import DenseHints, ObjectSimilarity, mask_coverage
from virtue_pl.backbones.segmentation.prompt_tokens import sparse_tokens
from virtue_pl.backbones.timm_trunk import TimmTrunk, feature_levels
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import (
    FeatureWidths,
    PromptBatch,
    PromptTokens,
    SegmentFeatures,
    VirtueError,
    VisualPrompt,
    cast,
    index_tensors,
)

STRIDE = 16
"""Pixels along the side of a cell of the feature map."""


class TimmSamPromptEncoder(PromptEncoder):
    """segment-anything's prompt encoder for rows that hold any number of points and boxes, masks, or nothing.

    Each row gets the tokens that segment-anything gives for it alone: its points, one padding point if there are points
    but no box, then two corners a box. A mask moves the dense embedding; several masks mean the area that they cover
    together.

    Args:
        embed_dim: d, divisible by 2.
        image_size: height and width of the square canvas in pixels, divisible by 16.
        grid_size: an empty prompt becomes `grid_size` x `grid_size` inside points (the paper: 3).
        mask_channels: width inside the mask prompt's convolutions.
        dense_hints: also draw boxes and points into the dense embedding (`DenseHints`), which is else
            segment-anything's alone.

    Example:
        >>> prompt = VisualPrompt.from_pixels(points=[[10, 20]], size=(100, 100))
        >>> encoder = TimmSamPromptEncoder(embed_dim=32, image_size=64)
        >>> encoder(PromptBatch((prompt,), torch.tensor([0]))).sparse.shape    # the point and a padding point
        torch.Size([1, 2, 32])
    """

    def __init__(
        self,
        embed_dim: int = 128,
        image_size: int = 256,
        grid_size: int = 3,
        mask_channels: int = 16,
        dense_hints: bool = False,
    ) -> None:
        super().__init__()
        self.feature_size = (feature_grid_size(image_size),) * 2
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.encoder = sam.PromptEncoder(embed_dim, self.feature_size, (image_size, image_size), mask_channels)
        self.grid = grid_points(grid_size)
        self.hints = DenseHints(embed_dim, self.encoder.mask_input_size[0], mask_channels) if dense_hints else None

    def forward(self, prompts: PromptBatch) -> PromptTokens:
        device = prompts.image_index.device
        rows = self.fill_empty(prompts)
        sparse, valid, counts = sparse_tokens(self.encoder, rows, device)
        dense, drawn = self.dense_embeddings(rows, device), None
        if self.hints is not None:
            hints, drawn = self.hints(rows, device)
            dense = dense + hints
        return PromptTokens(sparse, valid, dense, self.encoder.get_dense_pe()[0], prompts.image_index, drawn, counts)

    def dense_embeddings(
        self, rows: Sequence[VisualPrompt], device: torch.device
    ) -> Float[Tensor, "rows d height width"]:
        """Return the mask prompt's embedding where a row has one, and the learned "no mask" elsewhere."""
        masked = [index for index, row in enumerate(rows) if len(row.masks)]
        size = self.encoder.mask_input_size
        masks = (
            mask_coverage([rows[index] for index in masked], size) if masked else torch.zeros(0, *size, device=device)
        )
        embedded = self.encoder.mask_downscaling(masks[:, None])
        empty = self.encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(rows), -1, *self.feature_size)
        return empty.to(embedded.dtype).index_copy(0, *index_tensors([masked], device), embedded)


def feature_grid_size(image_size: int) -> int:
    """Return the cells along the feature map's side. Raises VirtueError for a canvas that they do not tile."""
    if image_size % STRIDE:
        raise VirtueError(f"image_size is {image_size}, expected a multiple of {STRIDE}")
    return image_size // STRIDE


class TimmSamBackbone(SegmentationBackbone):
    """A frozen timm trunk; everything above it is trained.

    It reads the trunk's features of stride 4 to 32, as many as there are. `SegmentFeatures.image` is the trunk's own
    view of the image, its features of stride 16 and coarser concatenated; `SegmentFeatures.embedding` is the image side
    of the two-way transformer.

    Args:
        trunk: a timm model name.
        weights: a safetensors file with that timm model's tensors, or None for random ones (tests, or weights that are
            loaded from a checkpoint later).
        embed_dim: d, the prompt encoder's too.
        image_size: height and width of the square canvas in pixels, the prompt encoder's too.
        depth, num_heads, mlp_dim: sizes of the two-way transformer.
        finest_stride: stride (4, 8 or 16) of the finest features to read; 8 makes cached features half as large.
        dense_hints: give the transformer the image's features where the prompt points (`ObjectSimilarity`); the prompt
            encoder's too.

    Example:
        >>> backbone = TimmSamBackbone("tf_efficientnet_lite0", embed_dim=32, image_size=64, finest_stride=8)
        >>> [level.shape[1] for level in backbone.image_features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))]
        [40, 112, 320]
    """

    def __init__(
        self,
        trunk: str = "tf_efficientnet_lite0",
        weights: str | Path | None = None,
        embed_dim: int = 128,
        image_size: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 512,
        finest_stride: int = 4,
        dense_hints: bool = False,
    ) -> None:
        super().__init__()
        feature_grid_size(image_size)
        self.image_size = image_size
        self.trunk = TimmTrunk(trunk, weights, feature_levels(trunk, finest_stride))
        channels, self.fine = self.trunk.channels, sum(stride < STRIDE for stride in self.trunk.strides)
        self.widths = FeatureWidths(embed_dim, sum(channels[self.fine :]))
        self.neck = Neck(channels[self.fine :], embed_dim)
        self.same_object = ObjectSimilarity(self.widths.image, embed_dim) if dense_hints else None
        self.mask_token = nn.Embedding(1, embed_dim)
        self.transformer = TwoWayTransformer(depth, embed_dim, num_heads, mlp_dim)
        self.mask_head = MaskHead(
            embed_dim, dict(zip(self.trunk.strides[: self.fine], channels[: self.fine], strict=True)), dense_hints
        )

    def image_features(
        self, pixels: UInt8[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images channels height width"], ...]:
        return self.trunk(pixels)

    def fingerprint(self) -> str:
        return fingerprint_of(self.trunk, self.image_size)

    def forward(
        self, features: tuple[Float[Tensor, "images channels height width"], ...], tokens: PromptTokens
    ) -> SegmentFeatures:
        fine, coarse = features[: self.fine], features[self.fine :]
        tokens = cast(tokens, self.mask_token.weight.dtype)
        neck = self.neck(coarse)
        image = torch.cat([resize_map(feature, neck.shape[-2:]) for feature in coarse], dim=1)
        mask_tokens, embedding = self.read_prompts(*self.transformer_inputs(image, neck, tokens), tokens)
        logits = self.mask_head(embedding, mask_tokens, fine, tokens)
        return SegmentFeatures(embedding, image[tokens.image_index], logits, tokens.image_positions, tokens.focus)

    def transformer_inputs(
        self,
        image: Float[Tensor, "images channels height width"],
        neck: Float[Tensor, "images d height width"],
        tokens: PromptTokens,
    ) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d height width"]]:
        """Return what the two-way transformer starts from: each prompt's mask token and map.

        Raises VirtueError where the prompt encoder does not draw its prompts as `dense_hints` need.
        """
        mask_tokens, keys = (
            self.mask_token.weight.expand(len(tokens.sparse), -1),
            neck[tokens.image_index] + tokens.dense,
        )
        if self.same_object is None:
            return mask_tokens, keys
        if tokens.focus is None:
            raise VirtueError(
                "the segmentation backbone has dense_hints, but the prompt encoder draws none: set dense_hints alike in"
                " both"
            )
        described, similarity = self.same_object(image, neck, tokens.focus, tokens.image_index)
        return mask_tokens + described, keys + similarity

    def read_prompts(
        self,
        mask_tokens: Float[Tensor, "prompts d"],
        keys: Float[Tensor, "prompts d height width"],
        tokens: PromptTokens,
    ) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d height width"]]:
        """Return the two-way transformer's mask token and image side.

        Its attention has no mask, so that prompts of equal token count go together.
        """
        read, embedding = torch.zeros_like(mask_tokens), torch.zeros_like(keys)
        for count, rows in tokens.rows_by_count():
            queries, maps = torch.cat([mask_tokens[rows, None], tokens.sparse[rows, :count]], dim=1), keys[rows]
            queries, image_tokens = self.transformer(maps, tokens.image_positions.expand_as(maps), queries)
            read = read.index_copy(0, rows, queries[:, 0])
            embedding = embedding.index_copy(0, rows, image_tokens.transpose(1, 2).reshape(maps.shape))
        return read, embedding


def scaled_projection(channels: int, width: int) -> nn.Sequential:
    """Return a 1x1 convolution of trunk features at unit scale.

    Trunks differ in scale by a factor of ten, which would drown the prompt.
    """
    return nn.Sequential(LayerNorm2d(channels), nn.Conv2d(channels, width, 1))


class Neck(nn.Module):
    """Features of stride 16 and coarser, summed top-down into one map of stride 16 and width d.

    Example:
        >>> Neck([112, 320], embed_dim=32)([torch.randn(1, 112, 4, 4), torch.randn(1, 320, 2, 2)]).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, channels: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(scaled_projection(width, embed_dim) for width in channels)
        self.smooth = nn.Sequential(
            LayerNorm2d(embed_dim), nn.Conv2d(embed_dim, embed_dim, 3, padding=1), LayerNorm2d(embed_dim)
        )

    def forward(
        self, features: Sequence[Float[Tensor, "images channels height width"]]
    ) -> Float[Tensor, "images d height width"]:
        """Return the sum of the maps, projected and at the finest one's size. features: finest first."""
        size = features[0].shape[-2:]
        maps = [resize_map(lateral(feature), size) for lateral, feature in zip(self.laterals, features, strict=True)]
        return self.smooth(torch.stack(maps).sum(dim=0))


class MaskHead(nn.Module):
    """Masks of stride 4 from the prompted map, upscaled twice, and a mask token that weighs its channels.

    The image's own finer features, and the prompt as it was drawn, join on the way.

    Args:
        embed_dim: d.
        fine_channels: channels of the finer features by stride (8, 4), where the trunk has them.
        dense_hints: read the prompt as it was drawn.

    Example:
        >>> head = MaskHead(embed_dim=32, fine_channels={4: 24, 8: 40}, dense_hints=False)
        >>> head.strides
        (4, 8)
    """

    def __init__(self, embed_dim: int, fine_channels: Mapping[int, int], dense_hints: bool) -> None:
        super().__init__()
        widths = {8: embed_dim // 4, 4: embed_dim // 4}
        self.strides = tuple(sorted(fine_channels))
        self.upscalings = nn.ModuleList(
            [nn.ConvTranspose2d(embed_dim, widths[8], 2, 2), nn.ConvTranspose2d(widths[8], widths[4], 2, 2)]
        )
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in widths.values())
        self.skips = nn.ModuleDict(
            {str(stride): scaled_projection(fine_channels[stride], widths[stride]) for stride in self.strides}
        )
        self.drawn = nn.Conv2d(4, widths[4], 3, padding=1) if dense_hints else None
        self.refine = nn.ModuleList(Refinement(widths[4]) for _ in range(2))
        self.hyper_network = MLP(embed_dim, embed_dim, widths[4], 3)

    def forward(
        self,
        embedding: Float[Tensor, "prompts d height width"],
        mask_tokens: Float[Tensor, "prompts d"],
        fine: Sequence[Float[Tensor, "images channels fine_height fine_width"]],
        tokens: PromptTokens,
    ) -> Float[Tensor, "prompts mask_height mask_width"]:
        """Return the mask logits of each prompt. fine: one map for each of `strides`, in their order."""
        skips = {
            stride: self.skips[str(stride)](feature)[tokens.image_index]
            for stride, feature in zip(self.strides, fine, strict=True)
        }
        pixels = embedding
        for stride, upscaling, norm in zip((8, 4), self.upscalings, self.norms, strict=True):
            pixels = upscaling(pixels) + skips.get(stride, 0)
            if stride == 4 and self.drawn is not None:
                pixels = pixels + self.drawn(tokens.prompt_maps)
            pixels = nn.functional.gelu(norm(pixels))
        for refine in self.refine:
            pixels = refine(pixels)
        return torch.einsum("pc,pchw->phw", self.hyper_network(mask_tokens), pixels)


class Refinement(nn.Module):
    """One residual 3x3 convolution: the class of a cell depends on its neighbours too.

    Example:
        >>> Refinement(8)(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), LayerNorm2d(width), nn.GELU())

    def forward(
        self, pixels: Float[Tensor, "prompts width height width"]
    ) -> Float[Tensor, "prompts width height width"]:
        """Return the pixels with the convolution's output added."""
        return pixels + self.layers(pixels)


def resize_map(
    feature: Float[Tensor, "images channels height width"], size: Sequence[int]
) -> Float[Tensor, "images channels new_height new_width"]:
    """Return the feature map at `size`, bilinearly; itself where it has that size."""
    return (
        feature
        if feature.shape[-2:] == tuple(size)
        else interpolate(feature, size=tuple(size), mode="bilinear", align_corners=False)
    )
