"""Start-up cost in CPU seconds of whole processes: the embedder's import, a command's help, a model with one text.

The embedder is compared to `import torch, lightning`, which everything here needs, in pairs that take turns. Loading a
model and encoding a text is compared to another version of this package's source (`--before`). Prints one JSON object.

    python benchmarks/start.py --pairs 5 --model FOLDER --before OTHER/src
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from virtue_pl.cli.main import COMMANDS

BASE, EMBEDDER = "import torch, lightning", "import virtue_pl.embedder"
ENCODE = """
import sys
from virtue_pl.embedder import Embedder

Embedder.from_pretrained(sys.argv[1], device="cpu").encode("a cat on a mat")
"""
SOURCE = Path(__file__).parents[1] / "src"


def main() -> None:
    options = parse()
    about: dict[str, Any] = {
        "torch": version("torch"),
        "processor": platform.processor() or platform.machine(),
        "pairs": options.pairs,
    }
    measured: dict[str, Any] = {
        "embedder": in_turns(options.pairs, ["-c", EMBEDDER], ["-c", BASE]),
        "help": {name: round(help_seconds(options.pairs, *name.split()), 2) for name in ("", *own_commands())},
    }
    measured["slowest_help"] = max(measured["help"].values())
    if Path(options.model).exists():
        load, before = (["-c", ENCODE, model] for model in (options.model, options.before_model or options.model))
        measured["load_and_encode"] = in_turns(options.pairs, load, before, SOURCE, options.before)
    else:
        measured["no_model"] = "run `make quickstart`, or give --model"
    print(json.dumps({**about, **measured}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--model",
        default="runs/quickstart/virtue/checkpoints/last.ckpt",
        help="an exported folder or a run's checkpoint",
    )
    parser.add_argument(
        "--before", type=Path, default=SOURCE, help="the src folder of another version, for the other of each pair"
    )
    parser.add_argument(
        "--before-model", help="the same model in a form that the other version reads (default: --model)"
    )
    return parser.parse_args()


def own_commands() -> list[str]:
    """Return the commands whose parser is this package's own, not Lightning's."""
    return [name for group in COMMANDS.values() for name, command in group.items() if not command.prefix]


def help_seconds(rounds: int, *command: str) -> float:
    """Return the median CPU seconds of a command's `--help`."""
    return statistics.median(cpu_seconds(["-m", "virtue_pl", *command, "--help"]) for _ in range(rounds))


def in_turns(
    pairs: int, first: Sequence[str], second: Sequence[str], source: Path = SOURCE, other: Path = SOURCE
) -> dict[str, float]:
    """Return median CPU seconds of two runs that take turns, and the median of the pairs' ratios."""
    found = [(cpu_seconds(first, source), cpu_seconds(second, other)) for _ in range(pairs)]
    ours, theirs = (round(statistics.median(column), 2) for column in zip(*found, strict=True))
    return {
        "seconds": ours,
        "compared_with": theirs,
        "ratio": round(statistics.median(ours / theirs for ours, theirs in found), 3),
    }


def cpu_seconds(arguments: Sequence[str], source: Path = SOURCE) -> float:
    """Return the user and system time of a Python process and its children. It must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = {**os.environ, "PYTHONPATH": str(source), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, *arguments], env=settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks: {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
