"""`virtue-pl estimate`: memory, operations and hours of a run on a GPU, from its config alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virtue_pl.cli.progress import LoadingLine
from virtue_pl.types import VirtueError

GROUP = "runs"


def main(argv: list[str]) -> int:
    """Print what a run takes on a device, from its config and made-up rows; nothing is read, trained or written.

    Raises VirtueError for a device that is not in the table, for a config that trains nothing, and for a model that
    cannot be built or traced.
    """
    options, rest = _parser().parse_known_args(argv)
    loading = LoadingLine("libraries and the model").start()
    from rich.console import Console

    from virtue_pl.cli.lightning import one_line_errors
    from virtue_pl.cli.run.estimate import EstimateCLI, check_training, estimate_run, report_of, row_sizes
    from virtue_pl.cli.run.summary import facts_table, parts_table
    from virtue_pl.data.io.atomic import write_json
    from virtue_pl.engine.estimation.devices import device_named

    device = device_named(options.device)
    if not 0 < options.utilisation <= 1:
        raise VirtueError(f"--utilisation is {options.utilisation:g}, expected more than 0 and at most 1")
    with one_line_errors("estimate"):
        cli = EstimateCLI("fit", rest, program="virtue-pl estimate")
        check_training(cli)
        table = parts_table(cli.model)
        sizes = row_sizes(options, cli.datamodule)
        step, tokens = estimate_run(cli, sizes)
        loading.stop()
        report = report_of(cli, step, tokens, device, options.utilisation)
        report["stored_features"] = sizes.features
    console = Console()
    console.print(table)
    console.print(facts_table("a step", step_facts(report, options)))
    console.print(facts_table(f"memory of a device at the peak, of {gib(device.memory)}", memory_facts(report)))
    console.print(facts_table(f"on {options.device} ({device.source})", run_facts(report)))
    if options.json is not None:
        write_json(options.json, report)
    return 0


def step_facts(report: dict[str, Any], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts about a step: rows, tokens, chunks, operations."""
    ranks, batch, chunk = report["ranks"], report["batch_size"], report["chunk_size"]
    yield "global batch", f"{batch * ranks:,} = {batch:,} x {ranks} ranks, precision {report['precision']}"
    yield "encoded", "as a whole" if chunk is None else f"in chunks of {chunk} rows"
    images = " and one a target" if options.target_images else ""
    stored = ", as features from a store" if report["stored_features"] else ""
    yield "made-up rows", f"an image of {options.image[0]} x {options.image[1]} pixels a query{images}{stored}"
    for name, count in report["tokens"].items():
        yield f"tokens of a {name}", f"{count:,}"
    for phase, count in report["flops"].items():
        if count and phase not in ("total", "model"):
            yield f"{phase} operations", f"{count * ranks:.3g}"
    yield "operations of all ranks", f"{report['flops']['total'] * ranks:.3g}"
    yield "without what is done again", f"{report['flops']['model'] * ranks:.3g}"


def memory_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts about memory: a device's by kind, and the host's."""
    for kind, size in report["memory"].items():
        yield kind.replace("_", " "), gib(size)
    if report["stored_on_host"]:
        yield "stored representations, on the host", gib(report["stored_on_host"])


def run_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts about a run on a device: its time, and what fits."""
    share = f"at {report['utilisation']:.0%} of the peak"
    yield "seconds a step", f"{report['seconds_a_step']:,.3g} {share}"
    if report["hours"] is None:
        yield "hours", "unknown: the run has no end, or its data is not there (set trainer.max_steps)"
    else:
        hours = f"{report['hours']:,.3g} for {report['steps']:,} steps"
        yield "hours", f"{hours}; {report['device_hours']:,.3g} device hours"
    none = "none fits"
    if report["chunk_size"] is not None or report["largest_chunk"] is not None:
        yield "largest chunk of this batch", rows_or(report["largest_chunk"], none)
    cut = "as a whole" if report["chunk_size"] is None else f"in chunks of {report['chunk_size']}"
    yield f"largest batch of a device, {cut}", rows_or(report["largest_batch"], none)
    if report["chunk_size"] is not None:
        yield "largest batch of a device, as a whole", rows_or(report["largest_whole_batch"], none)


def rows_or(rows: int | None, otherwise: str) -> str:
    """Return a number of rows as text, or what is said where there is none."""
    return otherwise if rows is None else f"{rows:,} rows"


def gib(size: int) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / 2**30:,.2f} GiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtue-pl estimate",
        usage="virtue-pl estimate [-h] [--device NAME] [...] -c FILE [-c FILE ...] [--NAME VALUE ...]",
        description=(
            "Prints parameters, memory by kind, operations, hours, and the largest chunk and batch that fit a GPU. The"
            " model is built without weights, and a few made-up rows run through a training step on torch's meta"
            " device, where nothing is computed."
        ),
        epilog=(
            "Beside these options it takes what fit takes: -c/--config FILE, of which several are laid over each other,"
            " and dotted overrides, as --trainer.devices 8. `virtue-pl fit --help` lists them."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="h100", help="a GPU of the table: h100, a100, l4, rtx4090 and so on")
    parser.add_argument(
        "--utilisation", type=float, default=0.4, help="share of the GPU's peak that is reached (default: %(default)s)"
    )
    parser.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="an image's size in pixels (default: 480 640)",
    )
    parser.add_argument(
        "--query-tokens", type=int, default=40, help="tokens of a query's text, beside its image (default: %(default)s)"
    )
    parser.add_argument(
        "--target-tokens",
        type=int,
        default=20,
        help="tokens of a target's or hard negative's text (default: %(default)s)",
    )
    parser.add_argument("--target-images", action="store_true", help="each target is an image, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, in bytes and operations, there")
    return parser
