"""Start-up cost in CPU seconds of whole processes: the embedder's import, a help, a model with one text, a search.

The embedder and a search of `--index` are compared to `import torch, lightning`, which everything here needs, in pairs
that take turns, behind a run of each that compiles the sources. Loading a model and encoding a text is compared to
another version of this package's source (`--before`). A search is also asked many texts at once, and through a server
that has the index loaded. Prints one JSON object.

    python benchmarks/start.py --pairs 5 --model FOLDER --before OTHER/src --index FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
QUERY = "a cat on a mat"
SERVER_START = 300.0
"""Seconds within which a server must have loaded its model and index."""


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
    if options.index is not None:
        measured["search"] = search_costs(options.pairs, options.queries, options.index)
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
    parser.add_argument("--index", help="a folder that `virtue-pl index` wrote, for what a search costs")
    parser.add_argument("--queries", type=int, default=101, help="texts of the search that is asked many at once")
    return parser.parse_args()


def search_costs(pairs: int, queries: int, index: str) -> dict[str, Any]:
    """Return what a search from the shell costs beside the imports that it needs, with many texts, and by a server."""
    search = ["-m", "virtue_pl", "search", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": f"{QUERY} {number}"}) + "\n" for number in range(queries)))
        one, many = [*search, index, "--text", QUERY], [*search, index, "--regions", str(texts)]
        alone = in_turns(pairs, one, ["-c", BASE])
        together = in_turns(pairs, many, one)
    further = (together["seconds"] - together["compared_with"]) / (queries - 1)
    found = {"alone": alone, "many": together, "queries": queries, "cpu_seconds_of_a_further_query": round(further, 4)}
    with running_server(index) as url:
        asked = [*search, "--server", url, "--text", QUERY]
        run(asked)
        walls = []
        for _ in range(pairs):
            began = time.monotonic()
            run(asked)
            walls.append(time.monotonic() - began)
    return {**found, "by_server_wall_seconds": [round(wall, 2) for wall in walls]}


@contextmanager
def running_server(index: str) -> Iterator[str]:
    """Provide the URL of a server that searches an index, within the block. It must start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + SERVER_START
    command = [sys.executable, "-m", "virtue_pl", "serve", "--index", index, "--port", str(port)]
    process = subprocess.Popen(command, env=environment(SOURCE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(f"{url}/ready"):
            if process.poll() is not None or time.monotonic() > ends:
                sys.exit(f"benchmarks: {' '.join(command[1:])} has not started")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Return whether a server answers a URL with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def own_commands() -> list[str]:
    """Return the commands whose parser is this package's own, not Lightning's."""
    return [name for group in COMMANDS.values() for name, command in group.items() if not command.prefix]


def help_seconds(rounds: int, *command: str) -> float:
    """Return the median CPU seconds of a command's `--help`."""
    return statistics.median(cpu_seconds(["-m", "virtue_pl", *command, "--help"]) for _ in range(rounds))


def in_turns(
    pairs: int, first: Sequence[str], second: Sequence[str], source: Path = SOURCE, other: Path = SOURCE
) -> dict[str, float]:
    """Return median CPU seconds of two runs that take turns, and the median of the pairs' ratios.

    Each runs once before, so that its sources are compiled and its files have been read.
    """
    for arguments, folder in ((first, source), (second, other)):
        run(arguments, folder)
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
    run(arguments, source)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(arguments: Sequence[str], source: Path = SOURCE) -> None:
    """Run a Python process, which must succeed."""
    done = subprocess.run([sys.executable, *arguments], env=environment(source), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks: {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def environment(source: Path) -> dict[str, str]:
    """Return the environment of a process that imports this package from a folder."""
    return {**os.environ, "PYTHONPATH": str(source), "TRANSFORMERS_VERBOSITY": "error"}


if __name__ == "__main__":
    main()
