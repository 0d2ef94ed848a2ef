"""`virtue-pl shards`: a dataset's files become folders of shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtue_pl.data.scar_shards import Advance
    from virtue_pl.data.shards import Manifest


def main(argv: list[str]) -> int:
    """Returns 0; mistakes in the data raise VirtueError, mistakes in `argv` exit with 2."""
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="virtue-pl shards", description="Turn a dataset into webdataset shards with a manifest.", allow_abbrev=False)
    formats = top.add_subparsers(required=True, metavar="FORMAT", title="formats")
    scar = formats.add_parser("scar", help="SCaR's parquet files and pictures, published or composed", allow_abbrev=False)
    scar.add_argument("--root", required=True, help="folder with SCaR-train/, SCaR-eval/ and images/")
    scar.add_argument("--out", required=True, help="where to write one folder of shards for each parquet file")
    scar.add_argument("--shard-size", type=int, default=100, metavar="PICTURES", help="pictures in a shard (default 100)")
    scar.add_argument("--seed", type=int, default=0, help="of the order of the pictures (default 0)")
    scar.add_argument("--licence", help="of the data, for the manifest (default: what ROOT/scenes.json says, or else SCaR's CC-BY-NC-4.0)")
    scar.set_defaults(run=scar_shards)
    return top


def scar_shards(arguments: argparse.Namespace) -> int:
    from virtue_pl.data.scar_shards import convert_scar

    manifests = convert_scar(
        arguments.root,
        arguments.out,
        pictures_per_shard=arguments.shard_size,
        seed=arguments.seed,
        licence=arguments.licence,
        progress=show_progress,
    )
    for manifest in manifests.values():
        print(summary(manifest))
    return 0


def summary(manifest: Manifest) -> str:
    """One line: what was written and what was left out, with the reasons and the first row of it."""
    line = f"{manifest.name}: {manifest.rows:,} rows of {manifest.pictures:,} pictures in {len(manifest.shards):,} shards"
    if not manifest.skipped:
        return line
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.skipped.items()))
    key, problem = manifest.skipped_rows[0]
    return f"{line}; left out: {reasons} (first {key}: {problem})"


@contextmanager
def show_progress(name: str, rows: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(f"shards of {name}", total=rows)
        yield lambda done: progress.advance(task, done)
