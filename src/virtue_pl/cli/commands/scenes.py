"""`virtue-pl scenes`: compose images with exact masks, boxes and captions."""

from __future__ import annotations

import argparse
import os

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine

GROUP = "data"


def main(argv: list[str]) -> int:
    """Fetch the photographs if they are not there, then write the scenes, going on where an earlier call was stopped.

    Returns the exit code.
    """
    arguments = _parser().parse_args(argv)
    loading = LoadingLine("libraries").start()
    from rich.console import Console

    from virtue_pl.data.download.images import fetch_images
    from virtue_pl.data.scenes import SceneConfig, write_scenes

    loading.stop()
    console = Console()
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "workers")}
    config = SceneConfig(**settings)
    if config.source == "stamps":
        fetch_images(config.cache, console)
    manifest = write_scenes(config, arguments.out, arguments.workers)
    counts = ", ".join(f"{count} {split}" for split, count in manifest["samples"].items())
    console.print(f"scenes: {counts} samples in {arguments.out} (fingerprint {manifest['fingerprint']})")
    if "mmeb" in manifest:
        console.print(
            f"MMEB-mini: {config.mmeb_train} training and {config.mmeb_test} test rows of each of"
            f" {len(manifest['mmeb']['tasks'])} tasks"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl scenes",
        description=(
            "Writes SCaR-mini: composed images with exact masks and captions, as parquet and JPEG in SCaR's layout; "
            "and MMEB-mini, eight tasks in MMEB's layout, if rows of it are set."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/scar_mini", help="the folder to write")
    parser.add_argument(
        "--source",
        choices=("stamps", "shapes"),
        default="stamps",
        help="photographs, or drawn shapes that need no download",
    )
    parser.add_argument("--train", type=int, default=4000, help="training scenes, two samples each")
    parser.add_argument("--val", type=int, default=300, help="validation samples")
    parser.add_argument("--test", type=int, default=700, help="samples in each of test_seen and test_held_out")
    parser.add_argument("--mmeb-train", type=int, default=0, help="training rows of each task of MMEB-mini")
    parser.add_argument("--mmeb-test", type=int, default=0, help="test rows of each task of MMEB-mini")
    parser.add_argument("--size", type=int, default=256, help="height and width of the images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that write")
    parser.add_argument("--cache", default="data/cache", help="folder of fetched images")
    return parser
