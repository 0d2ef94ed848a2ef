"""Classes by their bare names, as `--data PairDataModule`: they are imported, so that jsonargparse finds them."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
