"""LLaVA-OneVision on transformers' own model: a SigLIP tower that reads an image whole and in tiles, and a Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import (
    AutoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionModel,
    LlavaOnevisionVideoProcessor,
)
from transformers import LlavaOnevisionProcessor as OnevisionProcessor

from virtue_pl.backbones.pretrained import readable_description
from virtue_pl.backbones.vlm.causal import CausalVLM, CausalVLMProcessor, TileProcessor


class LlavaOnevisionProcessor(TileProcessor):
    """Processor of LLaVA-OneVision, which cuts a text's only image in tiles and reads several images whole, as trained.

    A text's only image becomes a view of the whole and the best-fitting grid of at most `max_tiles` tiles.

    Args:
        vlm_model: folder or hub name of the model.
        max_tiles: largest number of tiles of an image.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.

    Example:
        >>> name = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"  # doctest: +SKIP
        >>> processor = LlavaOnevisionProcessor(name, 9, max_tokens=512)
        >>> len(processor.image_ids((384, 384), only_image=False))
        730
    """

    text_settings = CausalVLMProcessor.text_settings | {"token_counter"}

    def __init__(self, vlm_model: str, max_tiles: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        with readable_description(vlm_model):
            self.token_counter = AutoProcessor.from_pretrained(vlm_model)
        self.normalise = self.token_counter.image_processor
        tile = min(min(grid) for grid in self.normalise.image_grid_pinpoints) ** 2
        self.grid_pinpoints = [
            grid for grid in self.normalise.image_grid_pinpoints if grid[0] * grid[1] <= max_tiles * tile
        ]
        self.normalise.image_grid_pinpoints = self.grid_pinpoints
        # of an image among several: the whole, and the token that ends a line
        self.tokens_per_square: int = self.token_counter.num_image_tokens + 1

    def image_ids(self, size: tuple[int, int], only_image: bool = True) -> list[int]:
        """Return the image token's id for each of the image's tokens and line ends."""
        if not only_image:
            return [self.image_id] * self.tokens_per_square
        (count,) = self.token_counter._get_num_multimodal_tokens(image_sizes=[list(size)])["num_image_tokens"]
        return [self.image_id] * count

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        """Return the image unchanged: the layout of the tiles' tokens depends on its own size."""
        return image

    def pad_to_square(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "3 size size"]:
        """Return the image as the tower reads it among several: padded to a square, resized and normalised."""
        normalise = self.normalise
        padded = normalise.pad_to_square(image, tuple(int(255 * value) for value in normalise.image_mean))
        resized = normalise.resize(padded[None], normalise.size, resample=normalise.resample)
        return normalise.rescale_and_normalize(
            resized, True, normalise.rescale_factor, True, normalise.image_mean, normalise.image_std
        )[0]


class LlavaOnevisionBackbone(CausalVLM):
    """LLaVA-OneVision (arXiv 2408.03326).

    The tower sees each image whole and in tiles, and once more whole, for rows with several images.

    Args:
        vlm_model: folder or hub name of the model, in transformers' layout, loaded by `from_pretrained`.
        max_tiles: largest number of tiles of an image; the released models are trained on grids of 1 to 36.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.
        dtype: type of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
        vlm_sizes: what the model's config.json says, by which `virtue-pl check` builds it where its files are not; it
            is not read otherwise.

    Example:
        >>> name = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"  # doctest: +SKIP
        >>> backbone = LlavaOnevisionBackbone(name, max_tiles=9)
        >>> backbone.hidden_size
        896
    """

    model_class = LlavaOnevisionModel
    processor: LlavaOnevisionProcessor

    def __init__(
        self,
        vlm_model: str,
        max_tiles: int = 36,
        max_tokens: int = 2048,
        dtype: str = "float32",
        attention: str = "sdpa",
        vlm_sizes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(vlm_model, dtype, attention)
        self.processor = LlavaOnevisionProcessor(vlm_model, max_tiles, max_tokens)
        self.model.config.image_grid_pinpoints = self.processor.grid_pinpoints

    @classmethod
    def described_tokens(cls, config: Any) -> dict[str, int]:
        return {"<image>": config.image_token_id, "<video>": config.video_token_id}

    @classmethod
    def described_processors(cls, config: Any, tokenizer: Any) -> Sequence[Any]:
        vision = config.vision_config
        size = {"height": vision.image_size, "width": vision.image_size}
        images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=config.image_grid_pinpoints)
        tokens = (vision.image_size // vision.patch_size) ** 2
        videos = LlavaOnevisionVideoProcessor(size=size)
        return [
            OnevisionProcessor(
                images, tokenizer, videos, num_image_tokens=tokens, vision_feature_select_strategy="full"
            )
        ]

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Return each image's tokens behind the projector, which is frozen too.

        They are the whole image's tokens, the tiles' line by line, and last those of the image among several.
        """
        device, sizes = pixels[0].device, [(image.shape[1], image.shape[2]) for image in pixels]
        tiles = self.processor.normalise(list(pixels), return_tensors="pt")["pixel_values"].to(device)
        squares = torch.stack([self.processor.pad_to_square(image) for image in pixels])
        tiled = self.model.get_image_features(tiles.to(self.model.dtype), sizes).pooler_output
        num_images = [max(2, len(pixels))]  # two or more are not cut; one image is declared as two, of which one exists
        whole = self.model.get_image_features(
            squares[:, None].to(self.model.dtype), sizes, batch_num_images=num_images
        ).pooler_output
        return tuple((torch.cat(both),) for both in zip(tiled, whole, strict=True))

    def select_tokens(
        self, tokens: Float[Tensor, "tokens hidden"], only_image: bool
    ) -> Float[Tensor, "row_tokens hidden"]:
        """Return the tokens of an only image, or those of an image among several."""
        num_tokens = self.processor.tokens_per_square
        return tokens[:-num_tokens] if only_image else tokens[-num_tokens:]

    @property
    def vision_networks(self) -> Sequence[Any]:
        return [self.model.vision_tower, self.model.multi_modal_projector, self.model.image_newline]
