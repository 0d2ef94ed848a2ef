"""`DescribedCLI`: a run's model built from its sizes alone, on the meta device, without weights, network or memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import Namespace

from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.cli.lightning import VirtueCLI

SIZES = "vlm_sizes"
"""Entry of `shared` with the content of the vision-language model's config.json."""


class DescribedCLI(VirtueCLI):
    """`VirtueCLI` that builds the model on the meta device where `shared.vlm_sizes` is given.

    Such a model is not connected to the data.

    unread: the weights that a run would read, by their options.

    Example:
        >>> cli = DescribedCLI("fit", ["--config", "configs/virtue_2b.yaml"])  # doctest: +SKIP
        >>> next(cli.model.parameters()).device
        device(type='meta')
    """

    unread: dict[str, str]

    @property
    def is_described(self) -> bool:
        """Return whether the config states the model's sizes."""
        return (self.config.get("shared") or {}).get(SIZES) is not None

    def before_instantiate_classes(self) -> None:
        self.unread = dict(leave_out_weights(self.config.model, "model")) if self.is_described else {}

    def instantiate_classes(self) -> None:
        with ExitStack() as stack:
            if self.is_described:
                name_vlm(self.config.model, stack.enter_context(description(self.config.shared[SIZES])))
                stack.enter_context(skip_weights())
                stack.enter_context(torch.device("meta"))
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        if not self.is_described:
            super().after_instantiate_classes()


def leave_out_weights(config: Any, option: str) -> Iterator[tuple[str, str]]:
    """Set `weights` and `..._weights` to null, and yield their options and values; the vision-language model's, too."""
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
    """Set every `vlm_model` to a folder."""
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        if name == "vlm_model":
            config[name] = str(folder)
        else:
            name_vlm(value, folder)


@contextmanager
def description(sizes: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder that describes a Qwen2-VL of these sizes.

    It has a config, a tokenizer of single bytes, an image processor, and no weights.
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
