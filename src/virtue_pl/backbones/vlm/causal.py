"""What vision-language models on transformers' own classes have in common: a folder, a tokenizer, a frozen tower, a
causal language model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from virtue_pl.backbones.pretrained import are_weights_left_out, unfilled
from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.types import IMAGE_TOKEN, EncoderBatch, TokenSequence, VirtueError


class CausalVLMProcessor(VLMProcessor):
    """Tokenizes with the model's own tokenizer; an image's ids stand where `IMAGE_TOKEN` does, and no chat template
    around the text.

    `normalise` is the model's own image processor.
    """

    def __init__(self, vlm_model: str, max_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(vlm_model, trust_remote_code=False)
        self.normalise: Any = AutoImageProcessor.from_pretrained(vlm_model)
        self.image_id: int = AutoConfig.from_pretrained(vlm_model).image_token_id
        self.max_tokens = max_tokens

    @abstractmethod
    def image_ids(self, size: tuple[int, int], alone: bool = True) -> list[int]:
        """The ids of one image of `size`, resized: `image_id` for each of its tokens, and whatever the model expects
        between them.

        alone: whether its text shows no other.
        """

    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        rows = [self.row(text, shown) for text, shown in zip(texts, sizes, strict=True)]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return input_ids, mask

    def row(self, text: str, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """A row's ids. Of the text at most `max_tokens` are kept, of the images all."""
        pieces = text.split(IMAGE_TOKEN)
        if len(pieces) - 1 != len(sizes):
            raise VirtueError(
                f"a text has {len(pieces) - 1} places for images, expected {len(sizes)}, one {IMAGE_TOKEN} for each of"
                " its images"
            )
        ids: list[int] = []
        left = self.max_tokens
        for number, piece in enumerate(pieces):
            if number:
                ids += self.image_ids(sizes[number - 1], len(sizes) == 1)
            kept = self.tokenizer(piece, add_special_tokens=False)["input_ids"][:left]
            if self.image_id in kept:
                token = self.tokenizer.convert_ids_to_tokens(self.image_id)
                raise VirtueError(
                    f"a text holds the model's own {token}, expected {IMAGE_TOKEN} where an image stands: take it out"
                    " of the text"
                )
            ids, left = ids + kept, left - len(kept)
        return ids


class TileProcessor(CausalVLMProcessor):
    """For a model that cuts images in tiles by their own size, and counts all tokens one after another."""

    def position_ids(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        sizes: Sequence[Sequence[tuple[int, int]]],
    ) -> Int[Tensor, "rows tokens"]:
        return (attention_mask.cumsum(dim=1) - 1) * attention_mask

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


class CausalVLM(VLMBackbone):
    """A model on one of transformers' classes, without the head that predicts words. All but the language model's
    layers is frozen.

    What the tower gives for an image is at the language model's width already. Where there are several levels, the
    first one stands in
    the sequence, and the others are added behind the language model's first layers (`TokenSequence.deepstack_embeds`).
    """

    model_class: ClassVar[Any]
    model: Any
    processor: CausalVLMProcessor

    def __init__(self, vlm_model: str, dtype: str, attention: str) -> None:
        super().__init__()
        self.model = load_vlm(self.model_class, vlm_model, dtype, attention)
        self.change_layers()
        self.hidden_size = self.model.config.text_config.hidden_size
        self.model.requires_grad_(False)
        for learning in (self.language_model.layers, self.language_model.norm):
            learning.requires_grad_(True)

    def change_layers(self) -> None:
        """Where a model's own layers are replaced by quicker ones of the same weights."""

    @property
    def language_model(self) -> Any:
        """What reads a token sequence: the part of the model that learns."""
        return self.model.get_decoder()

    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "tokens hidden"], ...]]
    ) -> tuple[Float[Tensor, "tokens levels_hidden"], ...]:
        """An image's levels side by side."""
        return tuple(torch.cat(levels, dim=1) for levels in features)

    def read(self, tokens: Float[Tensor, "tokens levels_hidden"], alone: bool) -> Float[Tensor, "shown levels_hidden"]:
        """What a row reads of an image, for which `image_ids` leaves places; all of it, but in models that read several
        less closely than one.
        """
        return tokens

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens levels_hidden"]]) -> TokenSequence:
        assert inputs.position_ids is not None, "the processor gives them"
        embeds = self.language_model.embed_tokens(inputs.input_ids)
        if not vision:
            return TokenSequence(embeds, inputs.attention_mask, inputs.position_ids)
        shown = inputs.input_ids == self.processor.image_id
        alone = (inputs.use_rows.bincount()[inputs.use_rows] == 1).tolist()
        read = [self.read(tokens, only) for tokens, only in zip(vision, alone, strict=True)]
        first, *added = torch.cat(read).to(embeds.dtype).split(self.hidden_size, dim=1)
        embeds = embeds.masked_scatter(shown.unsqueeze(-1), first)
        return TokenSequence(embeds, inputs.attention_mask, inputs.position_ids, tuple(added), shown if added else None)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        levels = (
            {"visual_pos_masks": sequence.visual_pos_mask, "deepstack_visual_embeds": list(sequence.deepstack_embeds)}
            if sequence.deepstack_embeds
            else {}
        )
        output = self.language_model(
            inputs_embeds=sequence.embeds,
            attention_mask=sequence.attention_mask,
            position_ids=sequence.position_ids,
            use_cache=False,
            **levels,
        )
        return output.last_hidden_state


def load_vlm(model_class: Any, name: str, dtype: str, attention: str) -> Any:
    """The model without its head. Raises VirtueError where the folder is missing, is of another model, or lacks a
    tensor.
    """
    expected = model_class.config_class.model_type
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise VirtueError(f"vlm_model: the folder {name} is not there, expected a {expected}, or name one of the hub")
    found = AutoConfig.from_pretrained(name).model_type
    if found != expected:
        raise VirtueError(
            f"vlm_model: {name} is a {found}, expected a {expected}: name another folder, or give the backbone's class"
            f" for {found}"
        )
    if are_weights_left_out():
        return unfilled(name, {}, dtype=getattr(torch, dtype), attn_implementation=attention)
    model, report = model_class.from_pretrained(
        name, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise VirtueError(
            f"vlm_model: {name} lacks {len(missing)} tensors of a {expected}, e.g. {missing[0]}: download it again, or"
            " name another"
        )
    return model
