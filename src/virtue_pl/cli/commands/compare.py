"""`virtue-pl compare`: put tested runs side by side, with intervals and paired differences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.metrics.ranking import RankRows

GROUP = "results"


def main(argv: list[str]) -> int:
    """Print the tables, and write them where `--out` says. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    loading = LoadingLine("libraries").start()
    from dataclasses import replace

    from rich.console import Console

    from virtue_pl.evaluation.reports.comparison_tables import markdown_comparison, rich_comparison
    from virtue_pl.evaluation.reports.html_report import comparison_page
    from virtue_pl.evaluation.reports.plots import plot_families
    from virtue_pl.evaluation.reports.report_files import write_json, write_text
    from virtue_pl.evaluation.statistics.compare import (
        compare,
        data_fingerprints,
        read_chance,
        read_left_out,
        read_run,
        setting_notes,
    )
    from virtue_pl.evaluation.statistics.compared_run import ComparedRun
    from virtue_pl.evaluation.statistics.summary import context

    loading.stop()
    chosen = [folder_and_mode(run, arguments.mode) for run in arguments.runs]
    names = unique_names(arguments.runs, chosen)
    ranked = {folder: read_run(folder) for folder in {folder for folder, _ in chosen}}
    named = [":" in run for run in arguments.runs]
    chosen = [
        (folder, mode if given else only_mode(ranked[folder], mode))
        for given, (folder, mode) in zip(named, chosen, strict=True)
    ]
    tested_on = {name: data_fingerprints(folder) for name, (folder, _) in zip(names, chosen, strict=True)}
    runs = zip(names, chosen, named, strict=True)
    comparison = compare(
        [
            ComparedRun(name, ranked[folder], mode, names[0], not given, tuple(tested_on[name]), read_left_out(folder))
            for name, (folder, mode), given in runs
        ],
        arguments.queries,
    )
    folders = {name: folder for name, (folder, _) in zip(names, chosen, strict=True)}
    comparison = replace(comparison, notes=(*comparison.notes, *setting_notes(folders)))
    chance_levels = read_chance(folder for folder, _ in chosen)
    console = Console()
    for table in rich_comparison(comparison, chance_levels):
        console.print(table)
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False)
    if arguments.out is not None:
        given_as = dict(zip(names, arguments.runs, strict=True))
        about = {"chance": chance_levels, "runs": given_as, "data_fingerprints": tested_on, "context": context()}
        write_json(arguments.out / "compare.json", {**comparison.as_json(), **about})
        write_text(arguments.out / "compare.md", markdown_comparison(comparison, chance_levels))
        write_text(arguments.out / "compare.html", comparison_page(comparison, chance_levels))
        if arguments.plots:
            plot_families(comparison, chance_levels, arguments.out)
    return 0


def folder_and_mode(run: str, mode: str) -> tuple[Path, str]:
    """Return the folder and the mode of FOLDER or FOLDER:MODE."""
    folder, colon, named = run.rpartition(":")
    return (Path(folder), named) if colon else (Path(run), mode)


def only_mode(trainings: Sequence[RankRows], mode: str) -> str:
    """Return the mode that a run was ranked in, where it is one alone, as an evaluation's is; or else `mode`."""
    from virtue_pl.evaluation.statistics.summary import SET_BLIND

    found = {row.mode for training in trainings for row in training}
    modes = found - {SET_BLIND} or found
    return modes.pop() if len(modes) == 1 else mode


def unique_names(runs: list[str], chosen: list[tuple[Path, str]]) -> list[str]:
    """Name the runs by their folders, with the mode where it was given.

    They are named as they were typed where that would not tell them apart.

    Raises VirtueError for a run that is named twice.
    """
    short = [
        f"{folder.name}:{mode}" if ":" in run else folder.name for run, (folder, mode) in zip(runs, chosen, strict=True)
    ]
    names = short if len(set(short)) == len(short) else runs
    if len(set(names)) < len(names):
        raise VirtueError(f"compare: {', '.join(runs)} name a run twice, expected each once")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl compare",
        description=(
            "Shares of right answers with intervals over trainings and queries, clustered by image, and each run's"
            " paired difference to the first, by kind of distractor. Between single trainings the intervals are over"
            " queries alone, of these trainings and not of their variants."
        ),
    )
    run = (
        "folder of a tested run, or one that holds those of its seeds (seed_*); FOLDER:MODE for one evaluation mode, as"
        " runs/virtue:point"
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=run)
    parser.add_argument(
        "--mode",
        default="box",
        help="the evaluation mode of runs that name none and were ranked in several (default box)",
    )
    parser.add_argument(
        "--queries",
        choices=("same", "shared", "any"),
        default="same",
        help=(
            "same (default): refuse runs that were tested on different queries or candidates; shared: compare them on"
            " those that all have; any: each on its own, unpaired"
        ),
    )
    parser.add_argument("--out", type=Path, help="folder to write compare.md, compare.html and compare.json into")
    parser.add_argument(
        "--plots",
        action="store_true",
        help="draw bars into that folder, too (with matplotlib, of the extra `ablations`)",
    )
    return parser
