"""`virtue-pl quickstart`: fetch images, write scenes, train, and print what a visual prompt is worth."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine

GROUP = "start"


def main(argv: list[str]) -> int:
    """Run the stages of the plan that are not done, and print the table; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # threads that spin while they wait make everything crawl beside another program
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dataclasses import replace

    with LoadingLine("libraries"):
        from rich.console import Console

        from virtue_pl.cli import lightning
        from virtue_pl.cli.progress import show_progress
        from virtue_pl.pipelines.quickstart import Plan, Quickstart, fetch

    plan = Plan.read(arguments.plan)
    if arguments.source is not None:
        plan = replace(plan, scenes={**plan.scenes, "source": arguments.source})
    Quickstart(plan, arguments.out, arguments.data, arguments.cache, lightning.main, Console(), fetch, show_progress)()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl quickstart",
        description=(
            "Fetches images and weights, writes scenes and shards, trains a segmenter and two embedders, tests them and"
            " prints one table."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--plan", default="configs/studies/quickstart.yaml", help="sizes, configs and rows of the table"
    )
    parser.add_argument("--source", choices=("stamps", "shapes"), help="source of the scenes, instead of the plan's")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="runs and report")
    parser.add_argument("--data", type=Path, default=Path("data"), help="scenes and shards")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="fetched images and weights")
    return parser
