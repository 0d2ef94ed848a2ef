"""`DescribedCLI`: a run's model built from its sizes alone, without weights or network, on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from jsonargparse import Namespace

from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.checkpoints.class_paths import import_class
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.types import VirtueError

SIZES = "vlm_sizes"
"""Argument of a backbone with the content of its model's config.json."""
MODEL = "vlm_model"
"""Argument of a backbone with the folder or hub name of its model."""


class DescribedCLI(VirtueCLI):
    """`VirtueCLI` that builds the model on the meta device where a backbone's `vlm_sizes` are given.

    Such a model is not connected to the data.

    unread: the weights that a run would read, by their options. build_on: the device that such a model is built on;
    the language model's tensors are undefined on any.

    Example:
        >>> cli = DescribedCLI("fit", ["--config", "configs/virtue_2b.yaml"])  # doctest: +SKIP
        >>> next(cli.model.parameters()).device
        device(type='meta')
    """

    build_on: ClassVar[str] = "meta"
    unread: dict[str, str]

    @property
    def is_described(self) -> bool:
        """Return whether the config states the model's sizes."""
        return is_stated(self.config.model)

    def before_instantiate_classes(self) -> None:
        self.unread = dict(leave_out_weights(self.config.model, "model")) if self.is_described else {}

    def instantiate_classes(self) -> None:
        with ExitStack() as stack:
            if self.is_described:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="virtue-pl-check-")))
                name_described(self.config.model, folder, "model")
                stack.enter_context(skip_weights())
                stack.enter_context(torch.device(self.build_on))
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
        elif name == MODEL:
            yield where, str(value)
        else:
            yield from leave_out_weights(value, where)


def name_described(config: Any, folder: Path, option: str, class_path: str = "") -> None:
    """Write a folder for each language model whose sizes are stated, and set its `vlm_model` to it.

    Raises VirtueError, which names the option, for sizes of another model than the backbone's.
    """
    for name, value in list(vars(config).items()) if isinstance(config, Namespace) else ():
        where = f"{option}.{name}"
        if name == SIZES and value is not None:
            target = folder / str(len(list(folder.iterdir())))
            target.mkdir()
            try:
                import_class(class_path).describe(value, target)
            except VirtueError as error:
                raise VirtueError(f"{option}.{error}") from error
            config[MODEL] = str(target)
        elif isinstance(value, Namespace):
            name_described(value, folder, where, str(vars(config).get("class_path", class_path)))


def is_stated(config: Any) -> bool:
    """Return whether a config states a language model's sizes, at any depth."""
    if not isinstance(config, Namespace):
        return False
    return config.get(SIZES) is not None or any(map(is_stated, vars(config).values()))
