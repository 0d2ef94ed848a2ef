"""A model described by its sizes alone: a folder with its config, a tokenizer of single bytes, and its processors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtue_pl.types import VirtueError


def byte_tokenizer(tokens: Mapping[str, int]) -> Any:
    """Return a tokenizer with a token for each byte, and the given tokens at the given ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**symbols, **tokens}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!")


def write_description(folder: Path, sizes: Mapping[str, Any], tokenizer: Any, processors: Sequence[Any]) -> None:
    """Write a folder from which a model is built without its weights. sizes: the content of its config.json."""
    (folder / "config.json").write_text(json.dumps(dict(sizes)), encoding="utf-8")
    for part in (tokenizer, *processors):
        part.save_pretrained(folder)


def check_sizes(sizes: Mapping[str, Any], expected: str, option: str) -> None:
    """Raise VirtueError, which names `option`, for sizes of a model of another type than `expected`."""
    found = sizes.get("model_type")
    if found != expected:
        raise VirtueError(
            f"{option} are those of a {found}, expected a {expected}: name the YAML of the backbone (configs/vlm/),"
            " which brings its own, or set it to null"
        )
