"""A small vision-language backbone: a timm vision tower joined to a Hugging Face text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.v2 import functional as transforms
from transformers import AutoTokenizer

from virtue_pl.backbones.attention_masks import known_padding
from virtue_pl.backbones.pretrained import description_files, readable_description
from virtue_pl.backbones.text_encoder import first_position, load_text_encoder
from virtue_pl.backbones.timm_trunk import TimmTrunk, feature_levels
from virtue_pl.backbones.vlm.base import VLMBackbone, scatter_tokens
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.preprocessing.truncation import tokenize_pieces
from virtue_pl.types import EncoderBatch, TokenSequence, VirtueError


class TimmTextProcessor(VLMProcessor):
    """Processor of a text encoder; an image takes `grid_size` x `grid_size` tokens with the id -1.

    Args:
        text_model: folder or hub name of the encoder.
        image_size: height and width of the square that images are resized to, in pixels.
        grid_size: tokens along an image's side.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.

    Example:
        >>> name = "sentence-transformers/all-MiniLM-L6-v2"  # doctest: +SKIP
        >>> processor = TimmTextProcessor(name, 256, grid_size=4, max_tokens=128)
        >>> input_ids, attention_mask = processor.tokenize(["a dog", "a black dog"], sizes=[[], []])
    """

    IMAGE_ID = -1

    def __init__(self, text_model: str | Path, image_size: int, grid_size: int, max_tokens: int) -> None:
        with readable_description(text_model):
            self.tokenizer = AutoTokenizer.from_pretrained(str(text_model), trust_remote_code=False)
        self.image_size = image_size
        self.grid_size = grid_size
        self.max_tokens = max_tokens
        self.files = description_files(str(text_model))

    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        rows = [self.tokenize_row(text) for text in texts]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return input_ids, mask

    def tokenize_row(self, text: str) -> list[int]:
        """Return a row's ids: [CLS], the text (`tokenize_pieces`) with its images' ids, [SEP]."""
        kept = tokenize_pieces(self.tokenizer, text, self.image_delimiters, self.max_tokens, special_tokens=2)
        ids = [self.tokenizer.cls_token_id]
        for number, piece_ids in enumerate(kept):
            ids += [self.IMAGE_ID] * self.grid_size**2 if number else []
            ids += piece_ids
        return [*ids, self.tokenizer.sep_token_id]

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 size size"]:
        size = [self.image_size, self.image_size]
        return image if list(image.shape[1:]) == size else transforms.resize(image, size, antialias=True)

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.image_size, self.image_size


class TimmTextBackbone(VLMBackbone):
    """Pooled features of a frozen timm network as tokens of a pretrained text encoder.

    Args:
        text_model: folder or hub name of a text encoder (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT), loaded by
            `from_pretrained`.
        vision_model: any timm network that gives feature maps.
        vision_weights: safetensors file with timm's names, or null for random weights.
        image_size: height and width of the square that images are resized to, in pixels.
        grid_size: an image becomes `grid_size` x `grid_size` tokens.
        frozen_layers: number of the text encoder's lowest layers (with its embeddings) that are not trained.
        dropout: dropout of the text encoder's trained layers, in training.
        max_tokens: the free part of longer texts is cut.

    Example:
        >>> name = "sentence-transformers/all-MiniLM-L6-v2"  # doctest: +SKIP
        >>> backbone = TimmTextBackbone(name, grid_size=4, frozen_layers=3)
        >>> backbone.hidden_size
        384
    """

    text: Any
    processor: TimmTextProcessor

    def __init__(
        self,
        text_model: str,
        vision_model: str = "tf_efficientnet_lite0",
        vision_weights: str | None = None,
        image_size: int = 256,
        grid_size: int = 4,
        frozen_layers: int = 0,
        dropout: float = 0.0,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise VirtueError(f"dropout is {dropout}, expected 0 or more, and less than 1")
        self.vision = TimmTrunk(vision_model, vision_weights, feature_levels(vision_model, 16))
        self.text = load_text_encoder(text_model, dropout)
        self.processor = TimmTextProcessor(text_model, image_size, grid_size, max_tokens)
        self.hidden_size = self.text.config.hidden_size
        self.first_position = first_position(self.text)
        self.grid_size = grid_size
        channels = sum(self.vision.channels)
        self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, self.hidden_size))
        self.places = nn.Parameter(torch.randn(grid_size**2, self.hidden_size) * 0.02)
        self.freeze(frozen_layers)
        self.train()  # a pretrained encoder comes in eval mode, in which nothing is dropped

    def freeze(self, layers: int) -> None:
        """Freeze the lowest `layers` layers of the text encoder and its embeddings; 0 freezes neither."""
        for module in [self.text.embeddings, *self.layers[:layers]] if layers else []:
            module.requires_grad_(False)

    @property
    def language_model(self) -> nn.Module:
        return self.text

    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 size size"]]
    ) -> tuple[tuple[Float[Tensor, "channels grid_size grid_size"]], ...]:
        maps = self.vision(torch.stack(list(pixels)))
        pooled = torch.cat([adaptive_avg_pool2d(feature, self.grid_size) for feature in maps], dim=1)
        return tuple((feature,) for feature in pooled.unbind())

    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "channels grid_size grid_size"], ...]]
    ) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        if not features:
            return ()
        pooled = torch.stack([feature for (feature,) in features])
        return tuple((self.project(pooled.flatten(2).transpose(1, 2)) + self.places).unbind())

    def fingerprint(self) -> str:
        return fingerprint_of(self.vision, self.processor.image_settings(), self.grid_size)

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        """Return embedded texts with the positions they have without images; an image's tokens stand at the first."""
        of_image = inputs.input_ids == TimmTextProcessor.IMAGE_ID
        embeds = self.text.get_input_embeddings()(inputs.input_ids.masked_fill(of_image, 0))
        if vision:
            embeds = scatter_tokens(embeds, of_image, torch.cat(list(vision)).to(embeds.dtype))
        is_text = (inputs.attention_mask.bool() & ~of_image).long()
        positions = (is_text.cumsum(dim=1) - 1).clamp(min=0) * is_text + self.first_position
        is_padded = inputs.layout.is_padded(inputs.input_ids.shape[1])
        return TokenSequence(embeds, inputs.attention_mask, positions, is_padded=is_padded)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        with known_padding(sequence.is_padded):
            output = self.text(
                inputs_embeds=sequence.embeds,
                attention_mask=sequence.attention_mask,
                position_ids=sequence.position_ids,
            )
        return output.last_hidden_state
