"""`virtue-pl ablations`: train the variants of a study, compare and plot them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine

GROUP = "results"


def main(argv: list[str]) -> int:
    """Run the stages of the plan that are not done, and print the tables; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # threads that spin while they wait make everything crawl beside another program
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with LoadingLine("libraries"):
        from rich.console import Console

        from virtue_pl.cli import lightning
        from virtue_pl.pipelines.ablations import AblationPlan, Ablations

    Ablations(AblationPlan.read(arguments.plan), arguments.out, lightning.main, Console())(
        arguments.variants, arguments.sets
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl ablations",
        description=(
            "Trains and tests the variants of a study, on what the quickstart left, and writes tables with intervals,"
            " paired differences and plots."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--plan", default="configs/studies/ablations.yaml", help="variants, seeds, rows of the tables")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="runs, report and plots")
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", default=[], help="do and report only these, instead of all"
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        metavar="SET",
        default=[],
        help="test and report only on these of the plan's sets, such as val while a design is argued, instead of all",
    )
    return parser
