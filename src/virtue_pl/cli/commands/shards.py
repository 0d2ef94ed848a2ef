"""`virtue-pl shards`: turn a dataset into webdataset shards with a manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import add_max_pixels, add_row_options, positive_number, row_options, share
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.left_out import LeftOut, describe_excess, left_out_table
from virtue_pl.cli.progress import LoadingLine, show_progress

if TYPE_CHECKING:
    from virtue_pl.data.shards.manifest import Manifest

GROUP = "data"
MAX_LEFT_OUT = 0.1
"""Share of the rows of one's own data that may be left out."""


def main(argv: list[str]) -> int:
    """Convert a dataset; returns 0, or 1 where too many rows are left out.

    Raises VirtueError for mistakes in the data; mistakes in `argv` exit with 2.
    """
    if argv[:1] == ["pairs"] and "--schema" in argv:
        return print_schema()
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    """Return the parser with one sub-command for each format."""
    top = CommandParser(
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
        "your own pairs or rankings: JSON Lines, CSV, parquet, Hugging Face datasets, COCO, images with captions",
        "NAME.jsonl, NAME.csv or NAME.parquet and images/; or what Hugging Face's save_to_disk wrote, a COCO annotation"
        " file, photo.jpg and photo.txt",
        MAX_LEFT_OUT,
    )
    pairs.formatter_class = argparse.RawDescriptionHelpFormatter
    pairs.epilog = describe_columns()
    pairs.add_argument("--schema", action="store_true", help="print the JSON Schema of a row, and exit")
    add_row_options(pairs)
    pairs.set_defaults(run=pair_shards)
    return top


def add_format(formats: Any, name: str, about: str, holds: str, max_left_out: float = 1.0) -> argparse.ArgumentParser:
    """Add a format's parser, with the options that all formats have, and return it.

    max_left_out: default of the option; of published data, of which people often have a part of the images, any share.
    """
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
    found.add_argument(
        "--max-left-out",
        type=share,
        default=max_left_out,
        metavar="SHARE",
        help=f"share of a folder's rows above which rows left out are an error (default {max_left_out:g}); all rows"
        " always are",
    )
    add_max_pixels(found, "are left out")
    return found


def print_schema() -> int:
    """Print the JSON Schema of a row of one's own data; returns the exit code."""
    from virtue_pl.data.formats.own_columns import schema_text

    print(schema_text(), end="")
    return 0


def describe_columns() -> str:
    """Return what the columns of one's own data are, for the help."""
    from virtue_pl.data.formats.own_columns import FIELDS, LISTS, column_descriptions

    about = column_descriptions()
    lines = [f"  {name:<17} {about[name]}" for name in ("query", *FIELDS, "target", *LISTS)]
    wrapped = [fill(line, 110, subsequent_indent=" " * 20, break_long_words=False) for line in lines]
    note = "  target_image, target_boxes, ...: the same of the target; query_image, ...: other names of the query's."
    return "\n".join(["columns:", *wrapped, note])


def scar_shards(arguments: argparse.Namespace) -> int:
    """Convert SCaR; returns the exit code."""
    with LoadingLine("libraries"):
        from virtue_pl.data.conversion.scar import convert_scar

    return report(convert_scar(arguments.root, arguments.out, **options(arguments)), arguments.max_left_out)


def mmeb_shards(arguments: argparse.Namespace) -> int:
    """Convert MMEB; returns the exit code."""
    with LoadingLine("libraries"):
        from virtue_pl.data.conversion.mmeb import convert_mmeb

    made = convert_mmeb(arguments.root, arguments.out, train_split=arguments.train_split, **options(arguments))
    return report(made, arguments.max_left_out)


def pair_shards(arguments: argparse.Namespace) -> int:
    """Convert own pairs; returns the exit code."""
    with LoadingLine("libraries"):
        from virtue_pl.data.conversion.pairs import convert_pairs

    made = convert_pairs(arguments.root, arguments.out, row_options=row_options(arguments), **options(arguments))
    return report(made, arguments.max_left_out)


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


def report(manifests: Mapping[str, Manifest], max_left_out: float = 1.0) -> int:
    """Print one line for each folder, and a table of the rows left out.

    Returns the exit code: 1 where of a folder more than the share `max_left_out`, or every row, is left out.
    """
    from rich.console import Console

    for manifest in manifests.values():
        print(summary(manifest))
    folders = [
        LeftOut(manifest.name, manifest.rows, manifest.skipped, manifest.skipped_rows)
        for manifest in manifests.values()
    ]
    if (table := left_out_table(folders)) is not None:
        Console().print(table)
    found = [problem for folder in folders if (problem := describe_excess(folder, max_left_out))]
    for problem in found:
        print(problem, file=sys.stderr)
    return int(bool(found))


def summary(manifest: Manifest) -> str:
    """Return one line on what was written.

    It has the numbers of rows, images and shards, and of the rows left out by reason, whose table names some of them.
    """
    line = f"{manifest.name}: {manifest.rows:,} rows of {manifest.images:,} images in {len(manifest.shards):,} shards"
    if not manifest.skipped:
        return line
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.skipped.items()))
    return f"{line}; left out: {reasons}"
