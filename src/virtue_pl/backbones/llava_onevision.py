"""LLaVA-OneVision on transformers' own model: a SigLIP tower that reads a picture whole and in tiles, and a Qwen2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoProcessor, LlavaOnevisionModel

from virtue_pl.backbones.causal_vlm import CausalVLM, TileProcessor
from virtue_pl.frozen_features import network_fingerprint


class LlavaOnevisionProcessor(TileProcessor):
    """Tokenizes for LLaVA-OneVision. A picture becomes the grid of at most `max_tiles` tiles that fits it best, and a view of the whole."""

    def __init__(self, vlm_model: str, max_tiles: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        self.counts = AutoProcessor.from_pretrained(vlm_model)
        self.normalise = self.counts.image_processor
        tile = min(min(grid) for grid in self.normalise.image_grid_pinpoints) ** 2
        self.grids = [grid for grid in self.normalise.image_grid_pinpoints if grid[0] * grid[1] <= max_tiles * tile]
        self.normalise.image_grid_pinpoints = self.grids

    def picture_ids(self, size: tuple[int, int]) -> list[int]:
        (count,) = self.counts._get_num_multimodal_tokens(image_sizes=[list(size)])["num_image_tokens"]
        return [self.image_id] * count

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        """As it is: how the tiles' tokens are laid out depends on the picture's own size."""
        return image


class LlavaOnevisionBackbone(CausalVLM):
    """LLaVA-OneVision (arXiv 2408.03326). Each picture is cut as the model cuts a text's only one, so that its tokens depend on it alone.

    Args:
        vlm_model: folder or hub name of the model, in transformers' layout, loaded by `from_pretrained`.
        max_tiles: into how many a picture is cut at most; the released models know grids of 1 to 36.
        max_tokens: longer texts are cut; a picture's tokens do not count.
        dtype: of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
    """

    model_class = LlavaOnevisionModel
    processor: LlavaOnevisionProcessor

    def __init__(self, vlm_model: str, max_tiles: int = 36, max_tokens: int = 2048, dtype: str = "float32", attention: str = "sdpa") -> None:
        super().__init__(vlm_model, dtype, attention)
        self.processor = LlavaOnevisionProcessor(vlm_model, max_tiles, max_tokens)
        self.model.config.image_grid_pinpoints = self.processor.grids

    @torch.no_grad()
    def vision_features(self, pixels: Sequence[UInt8[Tensor, "3 height width"]]) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the projector, which is frozen too: the whole picture's tokens, and the tiles' line by line."""
        prepared = self.processor.normalise(list(pixels), return_tensors="pt").to(pixels[0].device)
        found = self.model.get_image_features(prepared["pixel_values"].to(self.model.dtype), prepared["image_sizes"])
        return tuple((tokens,) for tokens in found.pooler_output)

    def fingerprint(self) -> str:
        projector = network_fingerprint(self.model.multi_modal_projector, self.model.image_newline.tolist())
        return network_fingerprint(self.model.vision_tower, projector, self.processor.grids)
