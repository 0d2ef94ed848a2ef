"""Options of the engine that a command runs on, which several commands share: this process, or Ray."""

from __future__ import annotations

import argparse

from virtue_pl.cli.dataclass_options import add_options, read_options, typed_options
from virtue_pl.cli.errors import UsageError
from virtue_pl.cluster.options import PREFIX, RayOptions

ENGINES = ("local", "ray")


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
