"""A text encoder of MiniLM's sizes with random weights, for benchmarks that have no weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def save_text_model(path: Path, vocabulary: Iterable[str]) -> str:
    """Write the model to `path` for `from_pretrained`, and return the path.

    Each word of the vocabulary is one token; any other word is the unknown token.
    """
    tokens = [*SPECIAL.values(), *vocabulary]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(tokens)}, unk_token=SPECIAL["unk_token"])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(path)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=len(tokens), **sizes), add_pooling_layer=False).save_pretrained(path)
    return str(path)
