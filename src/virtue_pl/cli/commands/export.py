"""`virtue-pl export SOURCE --out FOLDER`: write a checkpoint or a release as a folder with its model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.progress import LoadingLine

GROUP = "models"


def main(argv: list[str]) -> int:
    """Write the folder, and print a line about it; returns the exit code."""
    arguments = _parser().parse_args(argv)

    with LoadingLine("libraries"):
        from virtue_pl.checkpoints.export import export

    with LoadingLine(f"{arguments.source}, and writing it"):
        checkpoint = export(
            arguments.source,
            arguments.out,
            layout=arguments.layout,
            merge_adapters=arguments.merge_adapters,
            config=arguments.config,
            sam_checkpoint=arguments.sam_checkpoint,
            base=arguments.base,
            license=arguments.license,
            allow_classes=arguments.allow_classes,
        )
    print(f"wrote {len(checkpoint.tensors)} tensors to {arguments.out} ({arguments.layout} layout)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl export",
        description=(
            "Writes a model with its config, its formatter and a model card: safetensors, or the published layout."
            " Tensors are written as they are."
        ),
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a run's checkpoint (.ckpt, with the run's config.yaml above it), a release's folder or hub name",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument(
        "--layout",
        choices=("virtue", "published"),
        default="virtue",
        help="this package's (default), or that of the published weights",
    )
    parser.add_argument(
        "--merge-adapters",
        action="store_true",
        help="put a run's LoRA or DoRA into the weights, as the published layout needs it",
    )
    parser.add_argument(
        "--config", type=Path, help="the run's config, where it is not config.yaml in a folder above the checkpoint"
    )
    parser.add_argument(
        "--sam-checkpoint", type=Path, help="SAM's checkpoint of a published release, or the folder that it is in"
    )
    parser.add_argument("--base", help="folder of the model under a published checkpoint's adapters")
    parser.add_argument("--license", help="for the model card; by default what the source's card says")
    parser.add_argument(
        "--allow-classes",
        action="append",
        default=[],
        metavar="PREFIX",
        help="the model may consist of classes that begin so",
    )
    return parser
