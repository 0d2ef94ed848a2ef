"""`virtue-pl index ROWS --out FOLDER`: make encoded rows searchable, and measure how well.

The rows are what `virtue-pl encode` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from virtue_pl.cli.arguments import positive_number, share
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.option_groups import add_engine_options, add_storage_options, ray_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.search.settings import KINDS, IndexOptions

GROUP = "models"


def main(argv: list[str]) -> int:
    """Build the index, and print what it is; returns the exit code."""
    arguments = _parser().parse_args(argv)
    ray = ray_options(arguments)
    if ray is not None:  # whose nodes work in folders of their own
        arguments.rows, arguments.out = absolute(arguments.rows), absolute(arguments.out)

    with LoadingLine("libraries"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from virtue_pl.search import IndexBuilder, RayBuilder, RowFiles, VectorIndex

    options = IndexOptions(
        arguments.kind, arguments.exact_below, arguments.queries, arguments.recall, seed=arguments.seed
    )
    count = RowFiles.open(arguments.rows, arguments.storage_options).rows
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    builder = IndexBuilder() if ray is None else RayBuilder(ray)
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("writing", total=count)
        index = VectorIndex.build(
            arguments.rows,
            arguments.out,
            options,
            arguments.storage_options,
            replace=arguments.replace,
            stage=lambda name, done: progress.update(task, description=name, completed=done or count),
            builder=builder,
        )
    report = describe(index) | {"seconds": round(time.monotonic() - began, 1)}
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)
    if index.settings.recall is not None and index.settings.recall < arguments.recall:
        print(
            f"virtue-pl: the recall is below --recall {arguments.recall:g} however much of the index is searched: build"
            " it with another --kind, or --kind exact",
            file=sys.stderr,
        )
    return 0


def absolute(path: str) -> str:
    """Return the absolute path of a relative one; a URI stays."""
    return path if "://" in path else str(Path(path).absolute())


def describe(index: Any) -> dict[str, Any]:
    """Return the facts of an index, as `--json` prints them."""
    settings, facts = index.settings, index.facts
    found = {
        "index": index.uri,
        "rows": len(index),
        "dim": facts.dim,
        "documents": facts.documents,
        "model": facts.model,
        "fingerprint": facts.fingerprint,
        "instruction": facts.instruction,
        "kind": settings.kind,
    }
    if settings.kind != "exact":
        found |= {"recall@10": settings.recall, "queries": settings.queries, "partitions": settings.partitions}
        found |= {"ef": settings.ef} if settings.kind == "hnsw_sq" else {"probes": settings.probes}
        found["refine"] = settings.refine
    folder = Path(index.uri)
    if folder.is_dir():
        found["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return found


def print_report(report: dict[str, Any]) -> None:
    """Print the facts of an index in three lines."""
    size = f", {report['bytes'] / 2**20:,.1f} MiB" if "bytes" in report else ""
    print(f"{report['index']}: {report['rows']:,} {report['documents']} of {report['dim']} numbers{size}")
    print(f"encoded by {report['model']} ({report['fingerprint'][:12]}); indexed in {report['seconds']:g} s")
    if report["kind"] == "exact":
        print("searched exactly: every row is compared")
    else:
        print(
            f"searched by {report['kind']}: recall@10 {report['recall@10']:.3f} against exact search, measured with"
            f" {report['queries']} of its rows as queries"
        )


def _parser() -> argparse.ArgumentParser:
    default = IndexOptions()
    parser = CommandParser(
        prog="virtue-pl index",
        description="Writes encoded rows as a LanceDB table in a folder, or in object storage, which `virtue-pl search`"
        " and LanceDB itself open. Fewer rows than --exact-below are searched exactly; more by an approximate index,"
        " whose recall@10 against exact search is measured.",
    )
    parser.add_argument(
        "rows", metavar="ROWS", help="what `virtue-pl encode` wrote: a folder, a .parquet file or a .lance table"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new folder, or s3://BUCKET/PREFIX")
    parser.add_argument("--replace", action="store_true", help="replace an index that is there")
    parser.add_argument("--kind", choices=KINDS, default=default.kind, help="of the index (default auto, by its rows)")
    parser.add_argument(
        "--exact-below",
        type=int,
        default=default.exact_below,
        metavar="ROWS",
        help=f"rows below which auto compares every one (default {default.exact_below:,})",
    )
    parser.add_argument(
        "--recall",
        type=share,
        default=default.recall,
        metavar="SHARE",
        help=f"recall@10 up to which searches look at more of the index (default {default.recall:g})",
    )
    parser.add_argument(
        "--queries",
        type=positive_number,
        default=default.queries,
        metavar="N",
        help=f"rows that the recall is measured with (default {default.queries})",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of the draw of these rows")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    add_storage_options(parser)
    add_engine_options(parser)
    return parser
