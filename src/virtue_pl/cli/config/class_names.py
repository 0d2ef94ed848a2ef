"""Classes by their bare names, as `--data PairDataModule`: they are imported, so that jsonargparse finds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from virtue_pl.checkpoints.class_paths import import_class, public_classes

BARE = re.compile(r"[A-Z]\w+")
IN_YAML = re.compile(r"class_path:\s*['\"]?([A-Z]\w+)\b(?!\.)")


def import_bare_names(typed: Iterable[str]) -> None:
    """Import every class of this package that stands with its bare name among the typed or in a file that they name.

    A word is `--option=VALUE` or a value. Other typed are left alone.
    """
    names = set()
    for word in typed:
        value = word.partition("=")[2] if word.startswith("-") else word
        if BARE.fullmatch(value):
            names.add(value)
        elif value.endswith((".yaml", ".yml")) and Path(value).is_file():
            names |= set(IN_YAML.findall(Path(value).read_text(encoding="utf-8")))
    if names:
        classes = public_classes()
        for name in names & classes.keys():
            import_class(classes[name])


LOGGERS = re.compile(r"(lightning\.pytorch\.loggers\.)?(CSVLogger|TensorBoardLogger)")
"""Loggers that write files, into a folder that they need to be given."""


def with_logger_folder(typed: Sequence[str]) -> list[str]:
    """Return what was typed with the run's own folder for a logger that is named without one."""
    found = list(typed)
    named = any(word.startswith("--trainer.logger.") and "save_dir" in word for word in found)
    before = zip(["", *found], found, strict=False)
    values = [
        word.removeprefix("--trainer.logger=")
        for previous, word in before
        if previous == "--trainer.logger" or word.startswith("--trainer.logger=")
    ]
    if named or not values or not LOGGERS.fullmatch(values[-1]):
        return found
    settings = {"save_dir": "${trainer.default_root_dir}", "name": "", "version": ""}
    given = {word.partition("=")[0] for word in found}
    options = {f"--trainer.logger.init_args.{name}": value for name, value in settings.items()}
    return [*found, *(f"{option}={value}" for option, value in options.items() if option not in given)]
