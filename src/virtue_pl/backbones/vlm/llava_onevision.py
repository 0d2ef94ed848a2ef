"""LLaVA-OneVision on transformers' own model: a SigLIP tower that reads an image whole and in tiles, and a Qwen2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoProcessor, LlavaOnevisionModel

from virtue_pl.backbones.vlm.causal import CausalVLM, TileProcessor
from virtue_pl.features.frozen import network_fingerprint


class LlavaOnevisionProcessor(TileProcessor):
    """Tokenizes for LLaVA-OneVision. A text's only image becomes a view of the whole and the grid of at most
    `max_tiles` tiles that fits it
    best; of several each is seen whole only, as the model was trained.
    """

    def __init__(self, vlm_model: str, max_tiles: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        self.counts = AutoProcessor.from_pretrained(vlm_model)
        self.normalise = self.counts.image_processor
        tile = min(min(grid) for grid in self.normalise.image_grid_pinpoints) ** 2
        self.grids = [grid for grid in self.normalise.image_grid_pinpoints if grid[0] * grid[1] <= max_tiles * tile]
        self.normalise.image_grid_pinpoints = self.grids
        # of an image beside others: whole, and the mark that ends a line
        self.beside: int = self.counts.num_image_tokens + 1

    def image_ids(self, size: tuple[int, int], alone: bool = True) -> list[int]:
        if not alone:
            return [self.image_id] * self.beside
        (count,) = self.counts._get_num_multimodal_tokens(image_sizes=[list(size)])["num_image_tokens"]
        return [self.image_id] * count

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        """As it is: how the tiles' tokens are laid out depends on the image's own size."""
        return image

    def square(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "3 side side"]:
        """The image as the tower sees it beside others: padded to a square."""
        normalise = self.normalise
        padded = normalise.pad_to_square(image, tuple(int(255 * value) for value in normalise.image_mean))
        resized = normalise.resize(padded[None], normalise.size, resample=normalise.resample)
        return normalise.rescale_and_normalize(
            resized, True, normalise.rescale_factor, True, normalise.image_mean, normalise.image_std
        )[0]


class LlavaOnevisionBackbone(CausalVLM):
    """LLaVA-OneVision (arXiv 2408.03326). The tower sees each image whole and in tiles, and once more whole, for rows
    with several images.

    Args:
        vlm_model: folder or hub name of the model, in transformers' layout, loaded by `from_pretrained`.
        max_tiles: into how many an image is cut at most; the released models know grids of 1 to 36.
        max_tokens: longer texts are cut; an image's tokens do not count.
        dtype: of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
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
    ) -> None:
        super().__init__(vlm_model, dtype, attention)
        self.processor = LlavaOnevisionProcessor(vlm_model, max_tiles, max_tokens)
        self.model.config.image_grid_pinpoints = self.processor.grids

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 height width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the projector, which is frozen too: the whole image's tokens, and the tiles' line by line; then those
        it has beside others.
        """
        prepared = self.processor.normalise(list(pixels), return_tensors="pt").to(pixels[0].device)
        sizes, squares = prepared["image_sizes"], torch.stack([self.processor.square(image) for image in pixels])
        alone = self.model.get_image_features(prepared["pixel_values"].to(self.model.dtype), sizes).pooler_output
        several = [max(2, len(pixels))]  # two or more are not cut; of a batch of one the surplus is not looked at
        beside = self.model.get_image_features(
            squares[:, None].to(self.model.dtype), sizes, batch_num_images=several
        ).pooler_output
        return tuple((torch.cat(both),) for both in zip(alone, beside, strict=True))

    def read(self, tokens: Float[Tensor, "tokens hidden"], alone: bool) -> Float[Tensor, "shown hidden"]:
        beside = self.processor.beside
        return tokens[:-beside] if alone else tokens[-beside:]

    def fingerprint(self) -> str:
        projector = network_fingerprint(self.model.multi_modal_projector, self.model.image_newline.tolist())
        return network_fingerprint(self.model.vision_tower, projector, self.processor.grids, "alone and beside others")
