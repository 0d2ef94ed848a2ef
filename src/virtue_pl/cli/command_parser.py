"""The parser of a command's options: unknown options are reported first, with the closest name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that looks for unknown options before it looks for missing ones.

    argparse says "the following arguments are required" of an option that is there and misspelt.

    Example:
        >>> parser = CommandParser(prog="virtue-pl export")
        >>> _ = parser.add_argument("--out", required=True)
        >>> parser.unknown_option(["--uot", "folder"])
        '--uot'
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does. Exits with 2 for an option that there is not."""
        unknown = None if self._subparsers is not None or args is None else self.unknown_option(args)
        if unknown is not None:
            given = {argument.partition("=")[0] for argument in args or ()}
            options = {name: action for name, action in self._option_string_actions.items() if name.startswith("--")}
            missing = [name for name, action in options.items() if action.required and name not in given]
            closest = get_close_matches(unknown, missing, 1, 0.7) or get_close_matches(unknown, options, 1)
            self.error(f"unknown option {unknown!r}" + (f"; did you mean {closest[0]!r}?" if closest else ""))
        return super().parse_known_args(args, namespace)

    def unknown_option(self, arguments: Sequence[str]) -> str | None:
        """Return the first long option among the arguments that there is not; None where all are known."""
        for argument in arguments:
            if argument == "--":
                return None
            name = argument.partition("=")[0]
            if not name.startswith("--") or name in self._option_string_actions:
                continue
            if not (self.allow_abbrev and any(option.startswith(name) for option in self._option_string_actions)):
                return name
        return None
