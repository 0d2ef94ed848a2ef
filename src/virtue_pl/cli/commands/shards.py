"""`virtue-pl shards`: turn a dataset into webdataset shards with a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import add_max_pixels, positive_number
from virtue_pl.cli.progress import show_progress

if TYPE_CHECKING:
    from virtue_pl.data.shards.manifest import Manifest

GROUP = "data"


def main(argv: list[str]) -> int:
    """Convert a dataset; returns 0. Raises VirtueError for mistakes in the data; mistakes in `argv` exit with 2."""
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    """Return the parser with one sub-command for each format."""
    top = argparse.ArgumentParser(
        prog="virtue-pl shards",
        description="Turn a dataset into webdataset shards with a manifest.",
        allow_abbrev=False,
    )
    formats = top.add_subparsers(required=True, metavar="FORMAT", title="formats")
    scar = add_format(
        formats, "scar", "SCaR's parquet files and images, published or composed", "SCaR-train/, SCaR-eval/ and images/"
    )
    scar.set_defaults(run=scar_shards)
    mmeb = add_format(
        formats,
        "mmeb",
        "MMEB's parquet files and images, published or composed",
        "MMEB-train/, MMEB-eval/ or MMEB_Test_Instruct/, and images/, images.zip or images_zip/",
    )
    mmeb.add_argument(
        "--train-split", default="original", help="of MMEB-train: original (default) or diverse_instruction"
    )
    mmeb.set_defaults(run=mmeb_shards)
    pairs = add_format(
        formats,
        "pairs",
        "your own pairs or rankings, as JSON Lines or parquet, with images",
        "NAME.jsonl or NAME.parquet, and images/",
    )
    pairs.set_defaults(run=pair_shards)
    return top


def add_format(formats: Any, name: str, about: str, holds: str) -> argparse.ArgumentParser:
    """Add a format's parser, with the options that all formats have, and return it."""
    found: argparse.ArgumentParser = formats.add_parser(name, help=about, allow_abbrev=False)
    found.add_argument("--root", required=True, help=f"folder with {holds}")
    found.add_argument("--out", required=True, help="where to write one folder of shards for each parquet file")
    found.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder in which images are looked for first; may be given several times",
    )
    found.add_argument(
        "--shard-size",
        type=int,
        default=100,
        metavar="IMAGES",
        help="images, with their rows, in a shard (default 100)",
    )
    found.add_argument("--seed", type=int, default=0, help="seed of the order of the images (default 0)")
    found.add_argument(
        "--workers",
        type=positive_number,
        default=1,
        help="processes that convert, whose number changes nothing else (default 1)",
    )
    found.add_argument(
        "--licence",
        help="licence of the data, for the manifest (default: that in ROOT/scenes.json, or else the published data's)",
    )
    add_max_pixels(found, "are left out")
    return found


def scar_shards(arguments: argparse.Namespace) -> int:
    """Convert SCaR; returns the exit code."""
    from virtue_pl.data.conversion.scar import convert_scar

    return report(convert_scar(arguments.root, arguments.out, **options(arguments)))


def mmeb_shards(arguments: argparse.Namespace) -> int:
    """Convert MMEB; returns the exit code."""
    from virtue_pl.data.conversion.mmeb import convert_mmeb

    return report(convert_mmeb(arguments.root, arguments.out, train_split=arguments.train_split, **options(arguments)))


def pair_shards(arguments: argparse.Namespace) -> int:
    """Convert own pairs; returns the exit code."""
    from virtue_pl.data.conversion.pairs import convert_pairs

    return report(convert_pairs(arguments.root, arguments.out, **options(arguments)))


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that every converter takes."""
    named = {
        "images": arguments.images,
        "seed": arguments.seed,
        "licence": arguments.licence,
        "workers": arguments.workers,
        "max_pixels": arguments.max_pixels,
    }
    return {"images_per_shard": arguments.shard_size, "progress": show_progress, **named}


def report(manifests: Mapping[str, Manifest]) -> int:
    """Print one line for each folder; returns the exit code."""
    for manifest in manifests.values():
        print(summary(manifest))
    return 0


def summary(manifest: Manifest) -> str:
    """Return one line on what was written.

    It has the numbers of rows, images and shards, and of the rows left out, with reasons and the first one.
    """
    line = f"{manifest.name}: {manifest.rows:,} rows of {manifest.images:,} images in {len(manifest.shards):,} shards"
    if not manifest.skipped:
        return line
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.skipped.items()))
    key, problem = manifest.skipped_rows[0]
    return f"{line}; left out: {reasons} (first {key}: {problem})"
