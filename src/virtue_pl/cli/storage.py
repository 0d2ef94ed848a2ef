"""Options of object storage that several commands share."""

from __future__ import annotations

import argparse
from typing import Any


class StorageOption(argparse.Action):
    """A `KEY=VALUE`, gathered in a mapping.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_storage_options(parser)
        >>> parser.parse_args(["--storage-option", "region=eu-west-1"]).storage_options
        {'region': 'eu-west-1'}
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Add one option. Exits with 2 for one without an equals sign."""
        name, equals, value = str(values).partition("=")
        if not equals or not name:
            parser.error(f"--storage-option: expected KEY=VALUE, found {values!r}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: value})


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add `--storage-option`, which may be given several times."""
    parser.add_argument(
        "--storage-option",
        action=StorageOption,
        dest="storage_options",
        default={},
        metavar="KEY=VALUE",
        help="for object storage, as LanceDB takes it (region, endpoint, ...); may be given several times",
    )
