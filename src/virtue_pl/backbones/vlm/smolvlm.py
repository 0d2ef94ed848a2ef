"""SmolVLM on transformers' own model: a SigLIP tower that reads an image in tiles and whole, and a small Llama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoConfig, SmolVLMImageProcessor, SmolVLMModel
from transformers.image_utils import SizeDict
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from virtue_pl.backbones.attention_masks import known_padding
from virtue_pl.backbones.vlm.causal import CausalVLM, TileProcessor


class SmolVLMProcessor(TileProcessor):
    """Processor of SmolVLM, which cuts an image's longer side in `tiles`.

    Each tile, and behind them a view of the whole, is named in the text.

    Args:
        vlm_model: folder or hub name of the model.
        tiles: number of tiles along an image's longer side.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.

    Example:
        >>> name = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"  # doctest: +SKIP
        >>> processor = SmolVLMProcessor(name, tiles=4, max_tokens=512)
        >>> processor.grid((512, 1024))
        (2, 4)
    """

    def __init__(self, vlm_model: str, tiles: int, max_tokens: int) -> None:
        super().__init__(vlm_model, max_tokens)
        config = AutoConfig.from_pretrained(vlm_model)
        self.tokens_per_tile = (
            config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        ) ** 2
        self.tile_size: int = self.normalise.max_image_size["longest_edge"]
        self.tiles = tiles
        self.normalise.size = SizeDict(longest_edge=tiles * self.tile_size)

    def image_ids(self, size: tuple[int, int], only_image: bool = True) -> list[int]:
        """Return the ids of the image's prompt: each tile's name and tokens, and those of the whole."""
        image = self.tokenizer.convert_ids_to_tokens(self.image_id)
        text = get_image_prompt_string(
            *self.grid(size), self.tokens_per_tile, "<fake_token_around_image>", image, "<global-img>"
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of an image's tiles; (0, 0) for one that is read whole only.

        The model's image processor computes them, on a tensor without data.
        """
        resized = self.normalise.resize(torch.empty(1, 3, *size, device="meta"), self.normalise.size)
        fitted = self.normalise.resize_for_vision_encoder(resized, self.tile_size)
        rows, columns = fitted.shape[2] // self.tile_size, fitted.shape[3] // self.tile_size
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 tile_size tiles_width"]:
        """Return the tiles side by side, line by line, and the view of the whole at their end."""
        (tiles,) = self.normalise([[image]], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        return torch.cat(list(tiles.to(torch.uint8)), dim=2)


class SmolVLMBackbone(CausalVLM):
    """SmolVLM (arXiv 2504.05299).

    Args:
        vlm_model: folder or hub name of a SmolVLM2, loaded by `from_pretrained`.
        tiles: number of tiles along an image's longer side; 1 reads it whole only.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.
        dtype: type of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
        vlm_sizes: what the model's config.json says, by which `virtue-pl check` builds it where its files are not; it
            is not read otherwise.

    Example:
        >>> backbone = SmolVLMBackbone("HuggingFaceTB/SmolVLM2-2.2B-Instruct", tiles=1)  # doctest: +SKIP
        >>> backbone.hidden_size
        2048
    """

    model_class = SmolVLMModel
    processor: SmolVLMProcessor

    def __init__(
        self,
        vlm_model: str,
        tiles: int = 4,
        max_tokens: int = 2048,
        dtype: str = "float32",
        attention: str = "sdpa",
        vlm_sizes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(vlm_model, dtype, attention)
        self.processor = SmolVLMProcessor(vlm_model, tiles, max_tokens)

    @classmethod
    def described_tokens(cls, config: Any) -> dict[str, int]:
        tiles = [f"<row_{row}_col_{column}>" for row in range(1, 9) for column in range(1, 9)]
        names = ["<fake_token_around_image>", "<global-img>", *tiles]
        return {"<image>": config.image_token_id, **{name: 256 + number for number, name in enumerate(names)}}

    @classmethod
    def described_processors(cls, config: Any, tokenizer: Any) -> Sequence[Any]:
        size = config.vision_config.image_size
        return [SmolVLMImageProcessor(size={"longest_edge": 4 * size}, max_image_size={"longest_edge": size})]

    @torch.no_grad()
    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 tile_size tiles_width"]]
    ) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Return each image's tokens behind the connector, which is frozen too: the tiles' and the whole image's."""
        tiles = [tile for strip in pixels for tile in strip.split(self.processor.tile_size, dim=2)]
        normalise = self.processor.normalise
        prepared = normalise.rescale_and_normalize(
            torch.stack(tiles), True, normalise.rescale_factor, True, normalise.image_mean, normalise.image_std
        )
        with known_padding(False):
            states = self.model.vision_model(pixel_values=prepared.to(self.model.dtype)).last_hidden_state
        tokens = self.model.connector(states)
        counts = [strip.shape[2] // self.processor.tile_size for strip in pixels]
        return tuple((image.flatten(0, 1),) for image in tokens.split(counts))

    @property
    def vision_networks(self) -> Sequence[Any]:
        return [self.model.vision_model, self.model.connector]
