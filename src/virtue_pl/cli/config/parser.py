"""The parser of the commands that Lightning runs: nested nulls are null, and entries of `shared` that nobody reads."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from virtue_pl.cli.config.shared_entries import SharedEntries


class ConfigParser(LightningArgumentParser):
    """LightningArgumentParser that keeps account of `shared`, and that takes `null` for an option at any depth.

    shared: which entries of `shared` are read, over all config files so far.

    Example:
        >>> parser = ConfigParser(parser_mode="omegaconf+")
        >>> parser.shared.read
        set()
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shared = SharedEntries()

    def parse_args(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse typed, of which those that jsonargparse makes of values of nested options are YAML again."""
        typed = None if args is None else [as_yaml(word) for word in args]
        return super().parse_args(typed, *arguments, **options)

    def dump(self, cfg: Any, *arguments: Any, **options: Any) -> str:
        """Return a config as text, which is not checked again: it was when it was parsed.

        jsonargparse calls it for the merged config before interpolation. Raises UsageError for an entry of `shared`
        that nothing in that config reads.
        """
        options.setdefault("skip_validation", True)
        if "shared" in cfg and "${" in str(cfg):
            self.shared.add_references(str(cfg))
            self.shared.check(cfg["shared"] or {})
        return super().dump(cfg, *arguments, **options)


def as_yaml(word: str) -> str:
    """Return `--name=VALUE` with a VALUE that is Python's text of None, of a list or of a dict as YAML.

    jsonargparse hands the loaded value of a nested option to the parser of the class as text, in which a null is
    "None".

    Example:
        >>> as_yaml("--fusion.init_args.adapter=None"), as_yaml("--targets=[a, b]")
        ('--fusion.init_args.adapter=null', '--targets=[a, b]')
    """
    name, equals, text = word.partition("=")
    if not equals or "None" not in text:
        return word
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return word
    return f"{name}={json.dumps(value)}" if value is None or isinstance(value, list | dict) else word
