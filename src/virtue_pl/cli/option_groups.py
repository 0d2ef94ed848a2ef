"""Options that several commands share: of object storage, and of the engine that a command runs on."""

from __future__ import annotations

import argparse
from typing import Any

from virtue_pl.cli.dataclass_options import add_options, read_options, typed_options
from virtue_pl.cli.errors import UsageError
from virtue_pl.cluster.options import PREFIX, RayOptions

ENGINES = ("local", "ray")
"""This process, or the nodes of a Ray cluster."""


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


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add `--engine`, and a group with the options of Ray."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: this process (default); ray: the nodes of a Ray cluster (extra ray)",
    )
    add_options(parser.add_argument_group("ray", "with --engine ray"), RayOptions, PREFIX)


def ray_options(arguments: argparse.Namespace) -> RayOptions | None:
    """Return the options of Ray; None for another engine. Raises UsageError for one that is typed without it."""
    typed = typed_options(RayOptions, arguments, PREFIX)
    if arguments.engine == "ray":
        return read_options(RayOptions, arguments, PREFIX)
    if typed:
        raise UsageError(f"--{PREFIX}{next(iter(typed))} is of --engine ray, and the engine is {arguments.engine}")
    return None
