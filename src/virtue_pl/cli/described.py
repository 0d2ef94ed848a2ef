"""A run's model built from its sizes alone, on the meta device: no weights are read, no hub is asked, and hardly any
memory is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import Namespace

from virtue_pl.backbones.pretrained import weights_left_out
from virtue_pl.cli.lightning import VirtueCLI

SIZES = "vlm_sizes"
"""The entry of `shared` that says what the vision-language model's config.json does."""


class DescribedCLI(VirtueCLI):
    """`VirtueCLI`, but where `shared.vlm_sizes` is given, the model is described only, and the data is not connected to
    it.

    unread: the weights that a run would read, by their options.
    """

    unread: dict[str, str]

    @property
    def is_described(self) -> bool:
        return (self.config.get("shared") or {}).get(SIZES) is not None

    def before_instantiate_classes(self) -> None:
        self.unread = dict(leave_out_weights(self.config.model, "model")) if self.is_described else {}

    def instantiate_classes(self) -> None:
        with ExitStack() as stack:
            if self.is_described:
                name_vlm(self.config.model, stack.enter_context(description(self.config.shared[SIZES])))
                stack.enter_context(weights_left_out())
                stack.enter_context(torch.device("meta"))
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        if not self.is_described:
            super().after_instantiate_classes()


def leave_out_weights(config: Any, option: str) -> Iterator[tuple[str, str]]:
    """Sets `weights` and `..._weights` to null, and tells which; tells the vision-language model's name too."""
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        where = f"{option}.{name}"
        if isinstance(value, str) and (name == "weights" or name.endswith("_weights")):
            config[name] = None
            yield where, value
        elif name == "vlm_model":
            yield where, str(value)
        else:
            yield from leave_out_weights(value, where)


def name_vlm(config: Any, folder: Path) -> None:
    """Sets every `vlm_model` to a folder."""
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        if name == "vlm_model":
            config[name] = str(folder)
        else:
            name_vlm(value, folder)


@contextmanager
def description(sizes: Mapping[str, Any]) -> Iterator[Path]:
    """A folder that describes a Qwen2-VL of these sizes: its config, a tokenizer of single bytes, its image processor,
    and no weights.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

    with TemporaryDirectory(prefix="virtue-pl-check-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(sizes))
        symbols = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=symbols, merges=[]))
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!").save_pretrained(folder)
        Qwen2VLImageProcessor().save_pretrained(folder)
        yield folder
