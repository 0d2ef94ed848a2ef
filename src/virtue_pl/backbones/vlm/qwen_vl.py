"""The common part of the Qwen-VL models: images of any size in whole tokens, and positions on three axes (M-RoPE)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import AutoConfig, Qwen2VLImageProcessor

from virtue_pl.backbones.vlm.causal import CausalVLM, CausalVLMProcessor
from virtue_pl.backbones.vlm.qwen_patches import FlatPatchEmbed, QwenPatches
from virtue_pl.backbones.vlm.qwen_tower import Grid, Stretches, TowerAttention, join_on, patch_positions
from virtue_pl.preprocessing.images import resize_bicubic, smart_size

AXES = 3
"""Axes of a position: time, height, width."""


class QwenVLProcessor(CausalVLMProcessor):
    """Processor of a Qwen-VL; an image is resized to multiples of `factor` pixels, a square of which becomes a token.

    Args:
        vlm_model: folder or hub name of the model.
        min_pixels, max_pixels: bounds of a resized image's number of pixels.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.

    Example:
        >>> name = "Qwen/Qwen2-VL-2B-Instruct"  # doctest: +SKIP
        >>> processor = QwenVLProcessor(name, 4 * 28 * 28, 1280 * 28 * 28, max_tokens=512)
        >>> processor.grid((280, 560))
        (10, 20)
    """

    image_delimiters = ("<|vision_start|>", "<|vision_end|>")

    def __init__(self, vlm_model: str, min_pixels: int, max_pixels: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        vision = AutoConfig.from_pretrained(vlm_model).vision_config
        self.factor: int = vision.patch_size * vision.spatial_merge_size
        self.patches = QwenPatches(self.normalise)
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    def image_ids(self, size: tuple[int, int], only_image: bool = True) -> list[int]:
        """Return the image token's id for each of the image's tokens."""
        height, width = self.grid(size)
        return [self.image_id] * (height * width)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of a resized image's tokens."""
        return size[0] // self.factor, size[1] // self.factor

    def position_ids(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        sizes: Sequence[Sequence[tuple[int, int]]],
    ) -> Int[Tensor, "3 rows tokens"]:
        """Return the models' own positions (M-RoPE), each row's as if it were alone.

        A text counts on all axes alike, an image's tokens in two directions.
        """
        positions = torch.zeros(AXES, *input_ids.shape, dtype=torch.long)
        for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
            is_image = (input_ids[row, :length] == self.image_id).tolist()
            pieces = row_positions(is_image, [self.grid(size) for size in sizes[row]])
            positions[:, row, :length] = torch.cat([torch.zeros(AXES, 0, dtype=torch.long), *pieces], dim=1)
        return positions

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        return resize_bicubic(image, self.resized_size((image.shape[1], image.shape[2])))

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return smart_size(size, self.min_pixels, self.max_pixels, self.factor)


def row_positions(is_image: Sequence[bool], grids: Sequence[tuple[int, int]]) -> Iterator[Int[Tensor, "3 tokens"]]:
    """Yield the positions of a row's pieces, in order.

    An image starts where the text has come to, and the text goes on after its longer side. is_image: for each of the
    row's tokens; grids: rows and columns of each image's tokens.
    """
    index, start, remaining = 0, 0, iter(grids)
    while index < len(is_image):
        if is_image[index]:
            height, width = next(remaining)
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            yield torch.stack([torch.zeros_like(y), y, x]).flatten(1) + start
            index, start = index + height * width, start + max(height, width)
        else:
            end = is_image.index(True, index) if True in is_image[index:] else len(is_image)
            yield (torch.arange(end - index) + start).expand(AXES, -1)
            index, start = end, start + end - index


class QwenVLBackbone(CausalVLM):
    """Abstract Qwen-VL: frozen vision tower, merger and word embeddings; trained language model's layers.

    Args:
        vlm_model: folder or hub name of the model, loaded by `from_pretrained`; a release of VIRTUE is a Qwen2-VL, too.
        min_pixels, max_pixels: bounds of a resized image's number of pixels (the paper: 4x28x28 to 1280x28x28).
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.
        dtype: type of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
        vlm_sizes: what the model's config.json says, by which `virtue-pl check` builds it where its files are not; it
            is not read otherwise.

    Example:
        >>> from virtue_pl.backbones import Qwen2_5VLBackbone  # doctest: +SKIP
        >>> backbone: QwenVLBackbone = Qwen2_5VLBackbone("Qwen/Qwen2.5-VL-3B-Instruct", max_pixels=640 * 28 * 28)
    """

    processor: QwenVLProcessor

    def __init__(
        self,
        vlm_model: str,
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 1280 * 28 * 28,
        max_tokens: int = 2048,
        dtype: str = "float32",
        attention: str = "sdpa",
        vlm_sizes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(vlm_model, dtype, attention)
        tower = self.model.visual
        tower.patch_embed = FlatPatchEmbed(tower.patch_embed)
        self.sizes_on_host = attention == "sdpa"
        for block in tower.blocks if self.sizes_on_host else ():
            block.attn = TowerAttention(block.attn)
        self.processor = QwenVLProcessor(vlm_model, min_pixels, max_pixels, max_tokens)

    @classmethod
    def described_tokens(cls, config: Any) -> dict[str, int]:
        return {
            "<|vision_start|>": config.vision_start_token_id,
            "<|vision_end|>": config.vision_end_token_id,
            "<|image_pad|>": config.image_token_id,
            "<|video_pad|>": config.video_token_id,
        }

    @classmethod
    def described_processors(cls, config: Any, tokenizer: Any) -> Sequence[Any]:
        vision = config.vision_config
        return [Qwen2VLImageProcessor(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)]

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"], ...], ...]:
        """Return each image's tokens behind the merger, which is frozen too: already at the language model's width.

        A tower that is read at several depths gives the levels to add behind the language model's first layers, too.
        """
        values, grids = self.processor.patches(pixels)
        sizes = [(image.shape[1] // self.patch_size, image.shape[2] // self.patch_size) for image in pixels]
        computed = self.tower_inputs(sizes, values.device) if self.sizes_on_host else {}
        tower = self.model.visual
        found = tower(values.to(tower.dtype), grid_thw=grids if computed else grids.to(values.device), **computed)
        counts = [rows * columns // self.merge_size**2 for rows, columns in sizes]
        levels = (found.pooler_output, *(getattr(found, "deepstack_features", None) or ()))
        return tuple(zip(*(level.split(counts) for level in levels), strict=True))

    def tower_inputs(self, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
        """Return what the tower would compute from the sizes of images, by the names of its arguments.

        grids: rows and columns of each image's patches.
        """
        positions = [patch_positions(grid, self.merge_size) for grid in grids]
        return {
            "position_ids": join_on(device, positions),
            "cu_seqlens": Stretches([rows * columns for rows, columns in grids]),
        }

    @property
    def patch_size(self) -> int:
        """Return the pixels along a patch's side."""
        return self.processor.patches.patch_size

    @property
    def merge_size(self) -> int:
        """Return the patches along the side of a square that becomes one token."""
        return self.processor.patches.merge_size

    @property
    def vision_networks(self) -> Sequence[Any]:
        return [self.model.visual]
