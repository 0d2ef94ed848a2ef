"""SmolVLM on transformers' own model: a SigLIP tower that reads an image in tiles and whole, and a small Llama."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoConfig, SmolVLMModel
from transformers.image_utils import SizeDict
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from virtue_pl.backbones.vlm.causal import CausalVLM, TileProcessor
from virtue_pl.features.frozen import network_fingerprint


class SmolVLMProcessor(TileProcessor):
    """Tokenizes for SmolVLM. An image's longer side is cut in `tiles`; each tile, and then a view of the whole, is
    named in the text.
    """

    def __init__(self, vlm_model: str, tiles: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        config = AutoConfig.from_pretrained(vlm_model)
        self.tokens_a_tile = (
            config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        ) ** 2
        self.side: int = self.normalise.max_image_size["longest_edge"]
        self.tiles = tiles
        self.normalise.size = SizeDict(longest_edge=tiles * self.side)

    def image_ids(self, size: tuple[int, int], alone: bool = True) -> list[int]:
        image = self.tokenizer.convert_ids_to_tokens(self.image_id)
        text = get_image_prompt_string(
            *self.grid(size), self.tokens_a_tile, "<fake_token_around_image>", image, "<global-img>"
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of an image's tiles; (0, 0) for one that is seen whole only. The image processor says, given
        nothing but sizes.
        """
        resized = self.normalise.resize(torch.empty(1, 3, *size, device="meta"), self.normalise.size)
        fitted = self.normalise.resize_for_vision_encoder(resized, self.side)
        rows, columns = fitted.shape[2] // self.side, fitted.shape[3] // self.side
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 side tiles_side"]:
        """The tiles side by side, line by line, and the view of the whole at their end."""
        (tiles,) = self.normalise([[image]], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        return torch.cat(list(tiles.to(torch.uint8)), dim=2)


class SmolVLMBackbone(CausalVLM):
    """SmolVLM (arXiv 2504.05299).

    Args:
        vlm_model: folder or hub name of a SmolVLM2, loaded by `from_pretrained`.
        tiles: an image's longer side is resized to so many tiles; 1 shows it whole only.
        max_tokens: longer texts are cut; an image's tokens do not count.
        dtype: of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
    """

    model_class = SmolVLMModel
    processor: SmolVLMProcessor

    def __init__(
        self, vlm_model: str, tiles: int = 4, max_tokens: int = 2048, dtype: str = "float32", attention: str = "sdpa"
    ) -> None:
        super().__init__(vlm_model, dtype, attention)
        self.processor = SmolVLMProcessor(vlm_model, tiles, max_tokens)

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 side tiles_side"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the connector, which is frozen too: the tiles' tokens and the whole image's."""
        tiles = [tile for strip in pixels for tile in strip.split(self.processor.side, dim=2)]
        normalise = self.processor.normalise
        prepared = normalise.rescale_and_normalize(
            torch.stack(tiles), True, normalise.rescale_factor, True, normalise.image_mean, normalise.image_std
        )
        found = iter(self.model.get_image_features(prepared[:, None]).pooler_output)
        return tuple((torch.cat([next(found) for _ in strip.split(self.processor.side, dim=2)]),) for strip in pixels)

    def fingerprint(self) -> str:
        return network_fingerprint(
            self.model.vision_model, network_fingerprint(self.model.connector), self.processor.tiles
        )
