"""Qwen2-VL on transformers' own model: its vision tower and its language model, without the head that predicts words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Qwen2VLModel

from virtue_pl.backbones.qwen2_vl_last_layer import let_last_layer_give_one_token
from virtue_pl.backbones.vlm import VLMBackbone, VLMProcessor
from virtue_pl.frozen_features import network_fingerprint
from virtue_pl.images import resize_bicubic, smart_size
from virtue_pl.pooling import last_places
from virtue_pl.types import IMAGE_TOKEN, EncoderBatch, TokenSequence, VirtueError

AXES = 3
"""Of a position: time, height, width."""


class Qwen2VLProcessor(VLMProcessor):
    """Tokenizes for Qwen2-VL. A picture is resized to multiples of `factor` pixels, of which a square becomes one token."""

    marks = ("<|vision_start|>", "<|vision_end|>")

    def __init__(self, vlm_model: str, min_pixels: int, max_pixels: int, max_tokens: int) -> None:
        config = AutoConfig.from_pretrained(vlm_model)
        self.tokenizer = AutoTokenizer.from_pretrained(vlm_model, trust_remote_code=False)
        self.normalise: Any = AutoImageProcessor.from_pretrained(vlm_model)
        self.image_id: int = config.image_token_id
        self.factor: int = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.max_tokens = max_tokens

    def tokenize(self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        rows = [self.row(text, grids) for text, grids in zip(texts, map(self.grids, sizes), strict=True)]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return input_ids, mask

    def row(self, text: str, grids: Sequence[tuple[int, int]]) -> list[int]:
        """A row's ids. Of the text at most `max_tokens` are kept, of the pictures all."""
        pieces = text.split(IMAGE_TOKEN)
        if len(pieces) - 1 != len(grids):
            raise VirtueError(f"a text has {len(pieces) - 1} places for pictures, expected {len(grids)}, one {IMAGE_TOKEN} for each of its pictures")
        ids: list[int] = []
        left = self.max_tokens
        for number, piece in enumerate(pieces):
            if number:
                height, width = grids[number - 1]
                ids += [self.image_id] * (height * width)
            kept = self.tokenizer(piece, add_special_tokens=False)["input_ids"][:left]
            ids, left = ids + kept, left - len(kept)
        return ids

    def grids(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Rows and columns of each picture's tokens."""
        return [(height // self.factor, width // self.factor) for height, width in sizes]

    def position_ids(
        self, input_ids: Int[Tensor, "rows tokens"], attention_mask: Int[Tensor, "rows tokens"], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> Int[Tensor, "3 rows tokens"]:
        """Qwen2-VL's own positions (M-RoPE), each row's as if it were alone: text counts on all axes, a picture's tokens in two directions."""
        positions = torch.zeros(AXES, *input_ids.shape, dtype=torch.long)
        for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
            shown = (input_ids[row, :length] == self.image_id).tolist()
            positions[:, row, :length] = torch.cat([torch.zeros(AXES, 0, dtype=torch.long), *row_positions(shown, self.grids(sizes[row]))], dim=1)
        return positions

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        return resize_bicubic(image, self.resized((image.shape[1], image.shape[2])))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        return smart_size(size, self.min_pixels, self.max_pixels, self.factor)


def row_positions(shown: Sequence[bool], grids: Sequence[tuple[int, int]]) -> Iterator[Int[Tensor, "3 tokens"]]:
    """Positions of a row's pieces, in order. A picture starts where the text has come to, and the text goes on after its longer side."""
    place, start, left = 0, 0, iter(grids)
    while place < len(shown):
        if shown[place]:
            height, width = next(left)
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            yield torch.stack([torch.zeros_like(y), y, x]).flatten(1) + start
            place, start = place + height * width, start + max(height, width)
        else:
            end = shown.index(True, place) if True in shown[place:] else len(shown)
            yield (torch.arange(end - place) + start).expand(AXES, -1)
            place, start = end, start + end - place


class Qwen2VLBackbone(VLMBackbone):
    """Qwen2-VL. The vision tower with its merger and the word embeddings are frozen, the language model's layers are not.

    Args:
        vlm_model: folder or hub name of a Qwen2-VL, loaded by `from_pretrained`; a release of VIRTUE is one, too.
        min_pixels, max_pixels: how many a picture has after it is resized (the paper: 4x28x28 to 1280x28x28).
        max_tokens: longer texts are cut; a picture's tokens do not count.
        dtype: of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation.
    """

    model: Any
    processor: Qwen2VLProcessor

    def __init__(
        self,
        vlm_model: str = "Qwen/Qwen2-VL-2B-Instruct",
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 1280 * 28 * 28,
        max_tokens: int = 2048,
        dtype: str = "float32",
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        if vlm_model.startswith((".", "/")) and not Path(vlm_model).is_dir():
            raise VirtueError(f"vlm_model: the folder {vlm_model} is not there, expected a Qwen2-VL, or name one of the hub")
        self.processor = Qwen2VLProcessor(vlm_model, min_pixels, max_pixels, max_tokens)
        self.model = load_qwen2_vl(vlm_model, dtype, attention)
        let_last_layer_give_one_token(self.model.language_model)
        self.hidden_size = self.model.config.text_config.hidden_size
        for frozen in (self.model.visual, self.model.language_model.embed_tokens):
            frozen.requires_grad_(False)

    @torch.no_grad()
    def vision_features(self, pixels: Sequence[UInt8[Tensor, "3 height width"]]) -> tuple[tuple[Float[Tensor, "tokens hidden"]], ...]:
        """Behind the merger, which is frozen too: already at the language model's width."""
        prepared = self.processor.normalise(list(pixels), do_resize=False, return_tensors="pt").to(pixels[0].device)
        found = self.model.get_image_features(prepared["pixel_values"], prepared["image_grid_thw"]).pooler_output
        return tuple((tokens,) for tokens in found)

    def vision_tokens(self, features: Sequence[tuple[Float[Tensor, "tokens hidden"], ...]]) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        return tuple(tokens for (tokens,) in features)

    def fingerprint(self) -> str:
        return network_fingerprint(self.model.visual, self.processor.min_pixels, self.processor.max_pixels)

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        assert inputs.position_ids is not None, "the processor gives them"
        embeds = self.model.language_model.embed_tokens(inputs.input_ids)
        if vision:
            of_picture = (inputs.input_ids == self.processor.image_id).unsqueeze(-1)
            embeds = embeds.masked_scatter(of_picture, torch.cat(list(vision)).to(embeds.dtype))
        return TokenSequence(embeds, inputs.attention_mask, inputs.position_ids)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        output = self.model.language_model(
            inputs_embeds=sequence.embeds, attention_mask=sequence.attention_mask, position_ids=sequence.position_ids, use_cache=False
        )
        return output.last_hidden_state

    def last_states(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """The last layer is computed for each row's last token alone."""
        output = self.model.language_model(
            inputs_embeds=sequence.embeds,
            attention_mask=sequence.attention_mask,
            position_ids=sequence.position_ids,
            use_cache=False,
            last_places=last_places(sequence.attention_mask),
        )
        return output.last_hidden_state[:, 0]


def load_qwen2_vl(name: str, dtype: str, attention: str) -> Qwen2VLModel:
    """The model without its head. Raises VirtueError where a tensor is missing, or the folder is of another model."""
    loaded: Any = Qwen2VLModel.from_pretrained(name, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:
        raise VirtueError(f"vlm_model: {name} lacks {len(report['missing_keys'])} tensors of a Qwen2-VL, e.g. {sorted(report['missing_keys'])[0]}")
    return model
