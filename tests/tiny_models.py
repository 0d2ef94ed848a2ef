"""Tiny random models in the layout of the real ones, so that tests load them through the real code."""

from __future__ import annotations

import string
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

VISION_MODEL = "test_efficientnet"
"""timm's own miniature, 0.4 M parameters."""


def save_text_model(folder: Path, hidden_size: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """A BERT of `layers` layers with a character-level WordPiece tokenizer, as a Hugging Face folder."""
    symbols = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *symbols, *(f"##{symbol}" for symbol in symbols)]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=512,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_vision_model(path: Path, seed: int = 0) -> Path:
    """Random weights of `VISION_MODEL` under timm's names."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(VISION_MODEL, pretrained=False).state_dict(), path)
    return path
