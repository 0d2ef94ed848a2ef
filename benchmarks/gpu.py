"""A training step and encoding at virtue_2b's shapes on a GPU, beside stock transformers and peft on the same rows.

Random weights, made on the device: nothing is downloaded. The model is that of configs/virtue_2b.yaml with its adapters
and gradient cache, in mixed precision (bfloat16); the baseline is the published code (`published.py`) with the same
weights. Sections, each in a process of its own with a limit on its time:

    agreement         loss and gradients of a tiny step in float32 are the baseline's
    ours: training    samples/s, tokens/s, utilisation (MFU) and peak memory, at each chunk size
    stock: training   the same; operations are our count of the work, so that utilisations compare
    ours: encoding    images with a box, and texts
    stock: encoding   the same
    estimate          what `virtue-pl estimate` foretells of the training step

A section that fails says why, and the others run. Prints one JSON object, and a table on stderr; `--json FILE` is
written behind each section. All takes at most eight minutes; `--tiny --device cpu` runs the same code in one.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --tiny --device cpu
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

LIMITS = {
    "agreement": 60,
    "ours: training": 100,
    "stock: training": 130,
    "ours: encoding": 60,
    "stock: encoding": 60,
    "estimate": 60,
}
"""Sections and the seconds that each may take, its process's start among them."""
TOTAL = 475.0
"""Seconds for all sections."""
DONE = "done"
"""What a section's process says last."""
CONSOLE = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the report. argv: the options; None for those of the command line.

    Returns 1 where a section failed, 2 where nothing could run.
    """
    began = time.perf_counter()
    options = parse(argv)
    problem = missing(options.device)
    if problem:
        print(f"gpu.py: {problem}", file=sys.stderr)
        return 2
    method = "fork" if options.device == "cpu" else "spawn"  # a process that has used a GPU cannot be forked
    if method == "fork":
        warm_up()
    report: dict[str, Any] = {"about": describe(options), "sections": {}, "comparison": {}}
    embeddings: dict[str, Any] = {}
    with show_progress() as progress:
        for name in options.only or LIMITS:
            limit = min(LIMITS[name], TOTAL - (time.perf_counter() - began))
            found = run_section(name, setting_of(options), limit, method, progress)
            embeddings[name] = found.pop("embedding", None)
            report["sections"][name] = found
            report["comparison"] = compare(report["sections"], embeddings, options.device)
            if options.json is not None:
                write(options.json, report)
    CONSOLE.print(table_of(report))
    print(json.dumps(report, indent=2))
    return 1 if any("failed" in section for section in report["sections"].values()) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of two layers, and images of 56 x 84 pixels")
    parser.add_argument("--batch-size", type=int, help="pairs of a training step (default: 64; tiny: 4)")
    parser.add_argument(
        "--chunk-sizes", type=int, nargs="+", help="rows encoded at once in training (default: 2, the recipe's, and 16)"
    )
    parser.add_argument("--encoded", type=int, help="rows of a batch that is encoded (default: 32; tiny: 4)")
    parser.add_argument("--seconds", type=float, help="of measuring each thing (default: 12; tiny: 0.5)")
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), help="these sections alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, behind each section")
    options = parser.parse_args(argv)
    defaults = {"batch_size": 4, "chunk_sizes": [2], "encoded": 4, "seconds": 0.5}
    if not options.tiny:
        defaults = {"batch_size": 64, "chunk_sizes": [2, 16], "encoded": 32, "seconds": 12.0}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("batch_size", "encoded"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if min(options.chunk_sizes) < 1:
        parser.error(f"--chunk-sizes has {min(options.chunk_sizes)}, expected at least 1")
    return options


def missing(device: str) -> str:
    """Return what the benchmark lacks, in a line; "" where nothing."""
    if find_spec("peft") is None:
        return "peft is not installed, of which the model's adapters are made, and the baseline's: pip install -e ."
    if device == "cpu":
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return "this machine has no GPU that torch finds; `--tiny --device cpu` runs the same code on a CPU"


def warm_up() -> None:
    """Import once, for all processes, what building a model needs."""
    import gpu_sections

    quieten()
    gpu_sections.build(gpu_sections.Setting("meta", True, 1, (1,), 1, 0.0), "bfloat16")


def quieten() -> None:
    """Leave out Lightning's lines on devices and seeds, which it prints unless it is told not to behind its import."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def setting_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Setting`, which is imported in each section's process."""
    names = ("device", "tiny", "batch_size", "encoded", "seconds")
    return {**{name: getattr(options, name) for name in names}, "chunk_sizes": tuple(options.chunk_sizes)}


def describe(options: argparse.Namespace) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"config": "configs/virtue_2b.yaml", "precision": "bf16-mixed", **setting_of(options), "packages": packages}


def show_progress() -> Progress:
    """Return a line on stderr for the section that runs; it is drawn when it is told to, by no thread of its own."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("{task.fields[say]}"))
    return Progress(*columns, console=CONSOLE, auto_refresh=False)


def run_section(name: str, setting: dict[str, Any], limit: float, method: str, progress: Progress) -> dict[str, Any]:
    """Return what a section measured, or why it failed, and the seconds that it took."""
    began = time.perf_counter()
    task = progress.add_task(f"{name} (at most {limit:.0f} s)", total=None, say="starting")

    def say(text: str) -> None:
        progress.update(task, say=text)
        progress.refresh()

    nothing = {"failed": "no time was left for it"}
    found = in_process(name, setting, limit, method, say) if limit > 0 else nothing
    seconds = round(time.perf_counter() - began, 1)
    progress.remove_task(task)
    progress.console.print(f"{name}: {found.get('failed', 'done')} ({seconds} s)", highlight=False, markup=False)
    return {**found, "section_seconds": seconds}


def in_process(
    name: str, setting: dict[str, Any], limit: float, method: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run a section in a process of its own, which is ended at its limit; what it had measured by then counts."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(name, setting, sender), daemon=True)  # type: ignore[attr-defined]
    process.start()
    sender.close()
    ends, text, found = time.perf_counter() + limit, "starting", {}
    try:
        while time.perf_counter() < ends:
            say(text)
            if not receiver.poll(0.2):
                continue
            try:
                text, found = receiver.recv()
            except EOFError:
                process.join(10)
                return {**found, "failed": f"its process ended with {process.exitcode}, {text}"}
            if text == DONE:
                process.join(10)
                return found
        return {**found, "failed": f"it took longer than its {limit:.0f} s, {text}"}
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def work(name: str, setting: dict[str, Any], sender: Any) -> None:
    """Run a section in this process, and send what it says and what it has found so far."""
    found: dict[str, Any] = {}
    try:
        from gpu_sections import SECTIONS, Setting

        quieten()
        for text in SECTIONS[name](Setting(**setting), found):
            sender.send((text, found))
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        reason = " ".join(str(error).split())[:300]
        found["failed"] = reason if isinstance(error, SystemExit) else f"{type(error).__name__}: {reason}"
    sender.send((DONE, found))


def compare(sections: dict[str, Any], embeddings: dict[str, Any], device: str) -> dict[str, Any]:
    """Return ours to the baseline, and the estimate to what was measured, as far as both are there."""
    train, stock_train, encode, stock_encode, estimate = (
        sections.get(name, {})
        for name in ("ours: training", "stock: training", "ours: encoding", "stock: encoding", "estimate")
    )
    found: dict[str, Any] = {}
    if "loss" in train and "loss" in stock_train:
        found["loss_difference"] = abs(train["loss"] - stock_train["loss"])
        found["training"] = {
            f"chunk {one['chunk_size']}": ratios(one, other, "samples_per_second")
            for one, other in zip(train["chunks"], stock_train["chunks"], strict=False)
        }
    both = [name for name in ("images", "texts") if name in encode and name in stock_encode]
    if both:
        found["encoding"] = {name: ratios(encode[name], stock_encode[name], "rows_per_second") for name in both}
        found["cosine"] = cosine(embeddings["ours: encoding"], embeddings["stock: encoding"])
    if "chunks" in train and "chunks" in estimate:
        found["estimate_to_measured"] = {
            f"chunk {one['chunk_size']}": {
                "operations": round(one["gflop_a_step"] / train["gflop_a_step"], 3),
                # a process on a CPU holds more than its tensors
                "memory": round(one["peak_bytes"] / other["peak_bytes"], 3) if device == "cuda" else None,
            }
            for one, other in zip(estimate["chunks"], train["chunks"], strict=False)
        }
    return found


def ratios(ours: dict[str, Any], stock: dict[str, Any], speed: str) -> dict[str, float]:
    """Return our speed and peak memory to the baseline's."""
    return {
        "speed": round(ours[speed] / stock[speed], 3),
        "memory": round(ours["peak_bytes"] / stock["peak_bytes"], 3),
    }


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return round(sum(left * right for left, right in zip(one, other, strict=True)) / lengths, 6)


def table_of(report: dict[str, Any]) -> Table:
    """Return what was measured as a table: a line for each measurement."""
    sections = report["sections"]
    names = {section["device"] for section in sections.values() if "device" in section}
    table = Table("", "rows/s", "tokens/s", "teraflop/s", "MFU", "peak GiB", title=", ".join(sorted(names)))
    for name, section in sections.items():
        if "failed" in section:
            table.add_row(escape(f"{name}: {section['failed']}"))
        for line, one in lines_of(section):
            share = "" if one["mfu"] is None else f"{one['mfu']:.1%}"
            rows = one.get("rows_per_second", one.get("samples_per_second"))
            numbers = (f"{rows:,.4g}", f"{one['tokens_per_second']:,.0f}", f"{one['model_tflops']:,.4g}")
            table.add_row(f"{name}, {line}", *numbers, share, f"{one['peak_bytes'] / 2**30:,.2f}")
    return table


def lines_of(section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the measurements of a section, by what was measured."""
    for one in section.get("chunks", ()):
        if "mfu" in one:
            yield f"chunk {one['chunk_size']}", one
    for name in ("images", "texts"):
        if name in section:
            yield name, section[name]


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report, whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
