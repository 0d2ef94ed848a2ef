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
from transformers import AutoModel, AutoTokenizer

from virtue_pl.backbones.pretrained import are_weights_left_out, unfilled
from virtue_pl.backbones.timm_trunk import TimmTrunk, levels_from
from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.features.frozen import network_fingerprint
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.types import IMAGE_TOKEN, EncoderBatch, TokenSequence, VirtueError


class TimmTextProcessor(VLMProcessor):
    """Tokenizes for a BERT-like encoder; an image takes `side` x `side` places, marked by the id -1."""

    IMAGE_ID = -1

    def __init__(self, text_model: str | Path, image_size: int, side: int, max_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(str(text_model), trust_remote_code=False)
        self.image_size = image_size
        self.side = side
        self.max_tokens = max_tokens

    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        rows = [self.row(text) for text in texts]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return input_ids, mask

    def row(self, text: str) -> list[int]:
        pieces = text.split(IMAGE_TOKEN)
        ids = [self.tokenizer.cls_token_id]
        for number, piece in enumerate(pieces):
            ids += [self.IMAGE_ID] * self.side**2 if number else []
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        images = len(pieces) - 1
        return [*ids[: self.max_tokens - 1 + images * self.side**2], self.tokenizer.sep_token_id]

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 size size"]:
        size = [self.image_size, self.image_size]
        return image if list(image.shape[1:]) == size else transforms.resize(image, size, antialias=True)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.image_size, self.image_size


class TimmTextBackbone(VLMBackbone):
    """Pooled features of a frozen timm network as tokens of a pretrained text encoder.

    Args:
        vision_model: any timm network that gives feature maps.
        vision_weights: safetensors file with timm's names, or null for random weights.
        text_model: folder or hub name of a BERT-like encoder, loaded by `from_pretrained`.
        image_size: side of the square that images are resized to, in pixels.
        side: an image becomes `side` x `side` tokens.
        frozen_layers: how many of the text encoder's lowest layers (with its embeddings) are not trained.
        dropout: of the text encoder, in training.
        max_tokens: longer texts are cut.
    """

    text: Any
    processor: TimmTextProcessor

    def __init__(
        self,
        text_model: str,
        vision_model: str = "tf_efficientnet_lite0",
        vision_weights: str | None = None,
        image_size: int = 256,
        side: int = 4,
        frozen_layers: int = 0,
        dropout: float = 0.0,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.vision = TimmTrunk(vision_model, vision_weights, levels_from(vision_model, 16))
        self.text = load_text_encoder(text_model, dropout)
        self.processor = TimmTextProcessor(text_model, image_size, side, max_tokens)
        self.hidden_size = self.text.config.hidden_size
        self.side = side
        channels = sum(self.vision.channels)
        self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, self.hidden_size))
        self.places = nn.Parameter(torch.randn(side**2, self.hidden_size) * 0.02)
        self.freeze(frozen_layers)

    def freeze(self, layers: int) -> None:
        for module in [self.text.embeddings, *self.text.encoder.layer[:layers]] if layers else []:
            module.requires_grad_(False)

    @property
    def language_model(self) -> nn.Module:
        return self.text

    def vision_features(
        self, pixels: Sequence[UInt8[Tensor, "3 size size"]]
    ) -> tuple[tuple[Float[Tensor, "channels side side"]], ...]:
        maps = self.vision(torch.stack(list(pixels)))
        pooled = torch.cat([adaptive_avg_pool2d(feature, self.side) for feature in maps], dim=1)
        return tuple((feature,) for feature in pooled.unbind())

    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "channels side side"], ...]]
    ) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        if not features:
            return ()
        pooled = torch.stack([feature for (feature,) in features])
        return tuple((self.project(pooled.flatten(2).transpose(1, 2)) + self.places).unbind())

    def fingerprint(self) -> str:
        return network_fingerprint(
            self.vision, self.vision.name, self.vision.strides, self.processor.image_size, self.side
        )

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        """Texts keep the positions they have without images; an image's tokens stand at position 0."""
        of_image = inputs.input_ids == TimmTextProcessor.IMAGE_ID
        embeds = self.text.embeddings.word_embeddings(inputs.input_ids.masked_fill(of_image, 0))
        if vision:
            tokens = torch.cat(list(vision)).to(embeds.dtype)
            embeds = embeds.masked_scatter(of_image.unsqueeze(-1), tokens)
        is_text = (inputs.attention_mask.bool() & ~of_image).long()
        positions = (is_text.cumsum(dim=1) - 1).clamp(min=0) * is_text
        return TokenSequence(embeds, inputs.attention_mask, positions)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        output = self.text(
            inputs_embeds=sequence.embeds, attention_mask=sequence.attention_mask, position_ids=sequence.position_ids
        )
        return output.last_hidden_state


def load_text_encoder(name: str, dropout: float) -> nn.Module:
    """A BERT-like encoder without its pooler."""
    if name.startswith((".", "/")) or ("/" in name and not Path(name).exists() and Path(name).parent.exists()):
        if not Path(name).is_dir():
            raise VirtueError(
                f"text_model: the folder {name} is not there: run `virtue-pl fetch weights`, or name a model of the hub"
            )
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    # The fused attention's backward is slower than plain products on a CPU, and its sequences are short here.
    settings = {"attn_implementation": "eager", "add_pooling_layer": False}
    if are_weights_left_out():
        model = unfilled(name, dropouts, **settings)
    else:
        model = AutoModel.from_pretrained(name, trust_remote_code=False, **dropouts, **settings)
    if not hasattr(model, "embeddings"):
        raise VirtueError(f"text_model: {name} is a {type(model).__name__}, expected a BERT-like encoder")
    return model
