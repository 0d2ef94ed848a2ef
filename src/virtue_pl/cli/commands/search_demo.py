"""`virtue-pl search-demo`: point at an object, and search other scenes for the same one."""

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
        from virtue_pl.pipelines.region_search import RegionSearch, RegionSearchPlan

    RegionSearch(RegionSearchPlan.read(arguments.plan), arguments.out, lightning.main, Console())()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl search-demo",
        description=(
            "On what the quickstart left: trains its model on with pairs of regions, embeds the regions of all test"
            " scenes, searches them by a click or a box, beside whole images, crops and the paper's connector, and"
            " writes tables with intervals and chance, a page, an index and a sheet of hits."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--plan", default="configs/studies/region_search.yaml", help="models, rows of the tables and the gallery"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/region_search"), help="runs, embeddings, index and report"
    )
    return parser
