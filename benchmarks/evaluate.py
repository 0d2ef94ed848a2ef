"""Cost of an evaluation: a second one of the same checkpoint, regions that share their image, and ranking alone.

It is measured with any model (an exported folder or a run's checkpoint) and its evaluation sets, by default those of
the quickstart; without a model only ranking is, on random numbers. Prints one JSON object.

    python benchmarks/evaluate.py --model mini --data data/scar_mini_stamps --sets scar_mini --limit 100
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
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.evaluation.retrieval.query_encoder import QueryEncoder
from virtue_pl.evaluation.retrieval.set_ranking import SetRanking
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.types import EmbeddingInput, EvaluationRow, RankedSet, SetDescription, VisualPrompt

BATCH = 15
"""Queries that are read at once."""
IMPORTS = "import virtue_pl.cli.lightning, virtue_pl.data.datamodules.evaluation, virtue_pl.evaluation.evaluator"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    about: dict[str, Any] = {
        "model": options.model,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
    }
    of_model = (
        {"second": second(options), "regions": regions(options)}
        if Path(options.model).exists()
        else {"no_model": "run `make quickstart`, or give --model"}
    )
    measured = {
        **of_model,
        "ranking": [ranking(options.rounds, *map(int, case.split("x"))) for case in options.ranking],
    }
    print(json.dumps({**about, **measured}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/virtue/checkpoints/last.ckpt")
    parser.add_argument("--data", default="data/scar_mini_stamps", help="folder of shards, or an official folder")
    parser.add_argument("--sets", nargs="+", default=["scar_mini"])
    parser.add_argument("--limit", type=int, default=100, help="rows of each set")
    parser.add_argument("--images", type=int, default=10, help="number of images of three regions each")
    parser.add_argument("--image-size", type=int, default=256, help="height and width of those images, in pixels")
    parser.add_argument(
        "--ranking",
        nargs="*",
        default=["50000x10", "1000x100000"],
        help="queries x candidates; over 1000, all queries share them",
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def second(options: argparse.Namespace) -> dict[str, Any]:
    """Measure CPU seconds of whole commands, of their imports alone, and of the evaluations themselves.

    An evaluation counts from the loading of its weights on.
    """
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            runs = [evaluation(options, Path(folder) / name) for name in ("first", "again")]
            rounds.append(
                [*(figure for pair in runs for figure in pair), command_seconds([sys.executable, "-c", IMPORTS])]
            )
    first, first_inside, again, again_inside, imports = (
        statistics.median(column) for column in zip(*rounds, strict=True)
    )
    return {
        "limit": options.limit,
        "command_cpu_s": {"first": first, "second": again, "imports": imports},
        "inside_cpu_s": {"first": first_inside, "second": again_inside},
        "ratio_of_commands": again / first,
        "ratio_without_imports": (again - imports) / (first - imports),
        "ratio_inside": again_inside / first_inside,
    }


def evaluation(options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Run a command, and return its CPU seconds and those that its report names."""
    given = [
        "--model",
        options.model,
        "--data",
        options.data,
        "--sets",
        *options.sets,
        "--limit",
        str(options.limit),
        "--out",
        str(out),
    ]
    spent = command_seconds([sys.executable, "-m", "virtue_pl", "eval", *given, "--accelerator", "cpu"])
    return spent, json.loads((out / "report.json").read_text())["seconds"]["cpu"]


def command_seconds(command: Sequence[str]) -> float:
    """Run a process, and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def regions(options: argparse.Namespace) -> dict[str, Any]:
    """Measure CPU seconds of three regions per image, batched as in an evaluation.

    They are compared to every query alone, and to batches in which each query has an image of its own.
    """
    model = from_pretrained(options.model)
    encoder = QueryEncoder(model, "whole", 8)
    shared, own = queries(options, shared=True), queries(options, shared=False)
    encode(model, encoder, shared[:BATCH], BATCH)
    rounds = [
        (
            cpu_seconds(encode, model, encoder, shared, BATCH),
            cpu_seconds(encode, model, encoder, shared, 1),
            cpu_seconds(encode, model, encoder, own, BATCH),
        )
        for _ in range(options.rounds)
    ]
    together, alone, unshared = (statistics.median(column) for column in zip(*rounds, strict=True))
    of_alone, of_unshared = (statistics.median(each[0] / each[column] for each in rounds) for column in (1, 2))
    seconds = {"together": together, "alone": alone, "a_picture_each": unshared}
    return {
        "queries": len(shared),
        "image": [options.image_size] * 2,
        "cpu_s": seconds,
        "ratio_to_alone": of_alone,
        "ratio_to_a_picture_each": of_unshared,
    }


def queries(options: argparse.Namespace, shared: bool) -> list[EmbeddingInput]:
    """Return queries with three boxes on each image, or with each box on an image of its own."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(3 * options.images):
        if number % 3 == 0 or not shared:
            image = torch.randint(
                0, 256, (3, options.image_size, options.image_size), dtype=torch.uint8, generator=generator
            )
        box = torch.tensor([[0.1, 0.1, 0.4, 0.5]]) + 0.25 * (number % 3)
        found.append(
            EmbeddingInput(
                "Find the caption that best describes the object.",
                (image,),
                VisualPrompt(boxes=box),
                (f"{shared} {id(image)}",),
            )
        )
    return found


@torch.no_grad()
def encode(model: Any, encoder: QueryEncoder, items: Sequence[EmbeddingInput], size: int) -> None:
    for start in range(0, len(items), size):
        encoder.encode(model.collator.encoder_batch(items[start : start + size]))


def ranking(rounds: int, num_queries: int, num_candidates: int, dim: int = 384) -> dict[str, Any]:
    """Measure CPU seconds of an evaluation's ranks and metrics, without and with the lines of predictions.jsonl."""
    ranked, embeddings = ranked_set(num_queries, num_candidates, dim)
    seconds = [
        (cpu_seconds(rank, ranked, embeddings, False), cpu_seconds(rank, ranked, embeddings, True))
        for _ in range(rounds)
    ]
    alone, written = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "queries": num_queries,
        "candidates": num_candidates,
        "dim": dim,
        "cpu_s": {"ranking": alone, "with_lines": written},
    }


def ranked_set(num_queries: int, num_candidates: int, dim: int) -> tuple[RankedSet, Float[Tensor, "inputs dim"]]:
    """Return a set and random unit vectors as its embeddings.

    Up to 1000 candidates are each query's own; more are shared by all queries, in a hundred orders.
    """
    generator = torch.Generator().manual_seed(0)
    shared = num_candidates > 1000
    num_inputs = num_queries + num_candidates * (1 if shared else num_queries)
    embeddings = normalize(torch.randn(num_inputs, dim, generator=generator), dim=1)
    orders = [num_queries + torch.randperm(num_candidates, generator=generator) for _ in range(100 if shared else 0)]
    lists = (
        [orders[row % 100] for row in range(num_queries)]
        if shared
        else torch.arange(num_queries, num_inputs).split(num_candidates)
    )
    candidates, rankings = (EmbeddingInput("a caption"),) * num_candidates, {"hit@1": tuple(range(num_candidates))}
    rows = tuple(
        EvaluationRow("set", row, "", "", "", None, None, None, candidates, rankings) for row in range(num_queries)
    )
    return RankedSet(SetDescription("set", "mmeb"), rows, torch.arange(num_queries), tuple(lists)), embeddings


def rank(ranked: RankedSet, embeddings: Float[Tensor, "inputs dim"], written: bool) -> None:
    metrics, table = RetrievalMetrics(["set"]), RankTable()
    with open(os.devnull, "w", encoding="utf-8") as file:
        for lines in SetRanking(ranked, "box", None, embeddings).rank(0, range(len(ranked.rows)), metrics, table):
            file.writelines(json.dumps(line) + "\n" for line in (lines if written else ()))
    metrics.compute(), table.compute()


def cpu_seconds(work: Callable[..., None], *arguments: Any) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


if __name__ == "__main__":
    main()
