"""`virtue-pl parity FOLDER`: compare a model with recorded outputs, to the last digits."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_pl.cli.arguments import add_max_pixels
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine

if TYPE_CHECKING:
    from rich.table import Table

    from virtue_pl.parity.result import ParityRow

GROUP = "models"

WIDTH = 180
"""Width of the table, in characters, in a file or a pipe."""


def main(argv: list[str]) -> int:
    """Print the table. Returns 1 where a difference is beyond its tolerance."""
    arguments = _parser().parse_args(argv)

    loading = LoadingLine("libraries and the model").start()
    from rich.console import Console

    from virtue_pl.checkpoints.pretrained import from_pretrained
    from virtue_pl.parity.compare import Tolerances, parity
    from virtue_pl.parity.record import record

    given = arguments.model or arguments.folder / "model"
    model = from_pretrained(
        given, arguments.sam_checkpoint, arguments.formatter, arguments.base, allow_classes=arguments.allow_classes
    )
    loading.stop()
    if arguments.record:
        print(f"recorded {record(model, arguments.folder)} cases of {given} in {arguments.folder}")
        return 0
    tolerances = Tolerances(arguments.embedding_tolerance, arguments.segment_tolerance, arguments.gradient_tolerance)
    progress = Console(stderr=True)
    with progress.status("comparing") as status:
        rows = parity(
            model,
            arguments.folder,
            tolerances,
            lambda row: status.update(f"{row.case}: {row.name}"),
            arguments.max_pixels,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(_table(rows))
    failed = [row for row in rows if not row.holds]
    judged = sum(row.tolerance is not None for row in rows)
    console.print(
        f"{judged - len(failed)} of {judged} judged comparisons hold"
        + (f"; the first that does not: {failed[0].case}, {failed[0].name}" if failed else "")
    )
    return 1 if failed else 0


def _table(rows: list[ParityRow]) -> Table:
    from rich.table import Table

    table = Table("case", "compared", title="parity")
    for heading in ("max abs difference", "cosine", "tolerance", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        verdict = "" if row.tolerance is None else "ok" if row.holds else "[bold red]differs[/]"
        cosine = "" if math.isnan(row.cosine) else f"{row.cosine:.6f}"
        table.add_row(
            row.case,
            row.name,
            f"{row.difference:.1e}",
            cosine,
            "" if row.tolerance is None else f"{row.tolerance:g}",
            verdict,
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl parity",
        description=(
            "Runs the recorded cases of FOLDER against the model in FOLDER/model: forward passes, gradients, rows of"
            " evaluations. Exits with 1 where a difference is beyond its tolerance. A quantity without a tolerance is"
            " reported, and not judged."
        ),
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="holds golden_forward.json and its like, images, and model/"
    )
    parser.add_argument("--model", type=Path, help="folder or hub name of the model (default FOLDER/model)")
    parser.add_argument(
        "--sam-checkpoint", type=Path, help="SAM's checkpoint of a published release, or the folder that it is in"
    )
    parser.add_argument("--base", help="folder of the model under a checkpoint's adapters")
    parser.add_argument(
        "--formatter",
        choices=("published", "virtue"),
        help="insist on an input formatter; by default it is the one that the weights were trained with",
    )
    parser.add_argument(
        "--record", action="store_true", help="write cases of the model's own outputs into FOLDER instead"
    )
    parser.add_argument(
        "--allow-classes",
        action="append",
        default=[],
        metavar="PREFIX",
        help="an exported folder may name classes that begin so",
    )
    add_max_pixels(parser)
    parser.add_argument(
        "--embedding-tolerance", type=float, default=1e-4, help="largest absolute difference (default 1e-4)"
    )
    parser.add_argument(
        "--segment-tolerance", type=float, default=1e-3, help="the same of segment tokens (default 1e-3)"
    )
    parser.add_argument(
        "--gradient-tolerance", type=float, default=1e-3, help="largest relative difference (default 1e-3)"
    )
    return parser
