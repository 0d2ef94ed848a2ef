"""`virtue-pl encode`: embed a folder of images, rows, requests or shards into a folder of encoded rows."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import add_max_pixels, positive_number, share
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.dataclass_options import add_options, read_options
from virtue_pl.cli.left_out import LeftOut, left_out_table
from virtue_pl.cli.option_groups import add_engine_options, ray_options
from virtue_pl.cli.progress import LoadingLine, show_rate
from virtue_pl.evaluation.settings import LoadingOptions
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.apps.encoding import EncodeOptions, EncodingReport
    from virtue_pl.apps.encoding.engine import Engine, Model
    from virtue_pl.cluster import RayOptions

GROUP = "models"
MAX_LEFT_OUT = 0.01
"""Share of the documents that may be left out."""


def main(argv: list[str]) -> int:
    """Encode a source; returns 0, or 1 where too many documents are left out.

    Raises VirtueError for mistakes in the source, the model or the folder; mistakes in `argv` exit with 2.
    """
    arguments = parser().parse_args(argv)
    check_arguments(arguments)
    ray = ray_options(arguments)
    loading = LoadingLine("the model").start()
    from rich.console import Console

    from virtue_pl.apps.encoding import encode_source, open_source
    from virtue_pl.apps.encoding.sources import SourceOptions

    options = encode_options(arguments)
    rows = row_options(arguments)
    reading = SourceOptions(options.documents, options.proposals is not None, arguments.max_pixels, rows)
    source = open_source(locate(arguments.source, ray), reading)
    total = source.count()
    if not total:
        raise VirtueError(f"{arguments.source} has no document: expected {options.documents}")
    engine, model = choose_engine(arguments, ray)
    with engine.session():
        loading.stop()
        with stop_by_signal(), show_rate(total) as advance:
            report = encode_source(model, source, locate(arguments.out, ray), options, advance, engine)
    left_out = LeftOut(arguments.source, report.documents - report.total_left_out, dict(report.left_out), report.named)
    if (table := left_out_table([left_out])) is not None:
        table.title, table.columns[2].header, table.columns[3].header = "left out", "documents", "first documents"
        Console(stderr=True).print(table)
    print(json.dumps(summary(arguments.out, report)) if arguments.json else describe(arguments.out, report))
    return explain_excess(left_out, arguments.max_left_out)


def choose_engine(arguments: argparse.Namespace, ray: RayOptions | None) -> tuple[Engine, Model]:
    """Return the engine, and the model, or what loads it on a node."""
    from virtue_pl.apps.encoding import LocalEngine, RayEngine
    from virtue_pl.embedder import Embedder

    options: dict[str, Any] = vars(read_options(LoadingOptions, arguments))
    if ray is not None:
        for name in ("sam_checkpoint", "base"):
            if options[name] is not None:
                options[name] = str(locate(options[name], ray))
    model = str(locate(arguments.model, ray)) if Path(arguments.model).exists() else arguments.model
    load = partial(Embedder.from_pretrained, model, device=arguments.device, batch_size=arguments.batch_size, **options)
    return (LocalEngine(), load()) if ray is None else (RayEngine(ray), load)


def locate(path: str, ray: RayOptions | None) -> Path:
    """Return a path; on a cluster the absolute one, since its nodes work in folders of their own."""
    return Path(path) if ray is None else Path(path).absolute()


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    about = (
        "Embed all documents of a source, and write a row for each into a folder, part by part. The same command again"
        " encodes what is missing, and nothing else."
    )
    found = CommandParser(prog="virtue-pl encode", description=about, allow_abbrev=False)
    found.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of images (with sub-folders), of your own rows or of shards, or a file of rows or requests"
        " (.jsonl, .csv, .parquet)",
    )
    found.add_argument("--model", required=True, help="exported folder, published release, or a run's checkpoint")
    found.add_argument("--out", required=True, metavar="FOLDER", help="folder of the encoded rows")
    found.add_argument(
        "--documents",
        choices=("images", "texts", "regions"),
        help="what a row is of: whole images (default), texts, or every region (default with --propose)",
    )
    found.add_argument(
        "--propose",
        type=positive_number,
        metavar="N",
        help="regions are the segmentation model's own, from a grid of N x N points",
    )
    found.add_argument("--instruction", default="", metavar="TEXT", help="stands before each document's text")
    found.add_argument("--truncate-dim", type=positive_number, metavar="D", help="the first D dimensions alone")
    found.add_argument("--format", choices=("parquet", "lance"), default="parquet", help="of the parts")
    found.add_argument(
        "--part-size", type=positive_number, default=512, metavar="N", help="documents of a part (default 512)"
    )
    found.add_argument("--batch-size", type=positive_number, default=16, help="rows of a batch (default 16)")
    found.add_argument("--threads", type=positive_number, default=2, help="threads that decode images (default 2)")
    found.add_argument("--device", default="auto", help="auto (default) is a GPU where there is one")
    add_options(found, LoadingOptions)
    add_engine_options(found)
    found.add_argument(
        "--max-left-out",
        type=share,
        default=MAX_LEFT_OUT,
        metavar="SHARE",
        help=f"share of documents above which those left out are an error (default {MAX_LEFT_OUT:g}); all always are",
    )
    found.add_argument("--json", action="store_true", help="print the counts as JSON")
    add_max_pixels(found, "are left out")
    add_reading(found)
    return found


def add_reading(found: argparse.ArgumentParser) -> None:
    """Add what holds for rows that do not say it themselves."""
    from virtue_pl.data.formats.own_columns import BOX_FORMATS, UNITS

    found.add_argument("--box-format", choices=BOX_FORMATS, help="of the boxes of rows that do not say it")
    found.add_argument("--units", choices=UNITS, help="of the coordinates of rows that do not say it")
    found.add_argument(
        "--ignore-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column of rows that is left out; may be given several times",
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    """Set the kind of documents. Raises VirtueError where regions are proposed for another kind."""
    if arguments.documents is None:
        arguments.documents = "regions" if arguments.propose else "images"
    if arguments.propose and arguments.documents != "regions":
        raise VirtueError(
            f"--propose is given with --documents {arguments.documents}, expected --documents regions, or no --propose"
        )


def row_options(arguments: argparse.Namespace) -> Any:
    """Return what holds for rows that do not say it themselves."""
    from virtue_pl.data.formats.own_rows import RowOptions

    ignored = tuple(sorted(set(arguments.ignore_column)))
    return RowOptions(arguments.box_format, arguments.units, ignored_columns=ignored)


def encode_options(arguments: argparse.Namespace) -> EncodeOptions:
    """Return the settings of the encoding."""
    from virtue_pl.apps.encoding import EncodeOptions, ProposalOptions

    return EncodeOptions(
        arguments.documents,
        arguments.instruction,
        arguments.truncate_dim,
        replace(ProposalOptions(), points=arguments.propose) if arguments.propose else None,
        arguments.format,
        arguments.part_size,
        arguments.batch_size,
        arguments.threads,
        arguments.model,
        arguments.source,
        arguments.max_pixels,
        row_options(arguments).fingerprint_text,
    )


@contextmanager
def stop_by_signal() -> Iterator[None]:
    """End by SIGTERM as by Ctrl+C, with exit code 143: what is being written is removed, and whole parts stay."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print("virtue-pl: stopped: the parts that are whole stay; the same command again goes on", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(out: str, report: EncodingReport) -> dict[str, Any]:
    """Return a report as JSON has it."""
    return {
        "out": out,
        **asdict(report),
        "left_out": dict(report.left_out),
        "named": [list(row) for row in report.named],
    }


def describe(out: str, report: EncodingReport) -> str:
    """Return a report in one line."""
    before = report.documents - report.encoded
    found = f"{out}: {report.rows:,} rows of {report.documents - report.total_left_out:,} documents"
    return f"{found} ({report.encoded:,} encoded now, {before:,} were there)"


def explain_excess(left_out: LeftOut, allowed: float) -> int:
    """Return 0. Raises VirtueError where more than the allowed share, or every document, is left out."""
    if not left_out.total or (left_out.rows and left_out.share <= allowed):
        return 0
    count = f"{left_out.name}: {left_out.total:,} of {left_out.rows + left_out.total:,} documents are left out"
    if not left_out.rows:
        raise VirtueError(f"{count}, that is all: mend the source, and give another --out")
    raise VirtueError(
        f"{count} ({left_out.share:.1%}), more than --max-left-out {allowed:g} allows: mend the source and give another"
        " --out, or allow more"
    )
