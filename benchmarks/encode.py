"""Encoding with the mid-size model: images with a box compared to the published code, boxes of one image, and texts.

One thread. The baseline (`published.py`) and ours take turns, each in a process of its own, with the same weights,
whose embeddings must agree. Prints one JSON object; ratios are of CPU seconds. `boxes`: three boxes of one image in one
batch, compared to one batch each. `texts`: batches of 32 texts of 4 to 128 tokens, sorted by length, compared to their
original order.

    python benchmarks/encode.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mid_size import build, child_parser, peak_memory, queries, run_child, texts, timed, together, write_model

from virtue_pl.cli.memory import keep_freed_memory
from virtue_pl.engine.gradient_cache import cut_chunks

ROWS = 4
TEXTS = 128


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = str(write_model(Path(temporary) / "qwen2_vl"))
        print(json.dumps(compare(options), indent=2))


def parse() -> argparse.Namespace:
    parser = child_parser(__doc__)
    parser.add_argument("--child", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    same = ["--threads", str(options.threads), "--folder", options.folder]
    for _ in range(options.rounds):
        runs.setdefault("baseline", []).append(run_child(__file__, *same, "--child", "baseline"))
        for precision in options.precisions:
            runs.setdefault(precision, []).append(
                run_child(__file__, *same, "--child", "ours", "--precision", precision)
            )
    report: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds}
    for name, found in runs.items():
        chosen = sorted(found, key=lambda run: run["picture_cpu_seconds"])[len(found) // 2]
        report[name] = {key: value for key, value in chosen.items() if key != "embedding"}
    report["ratio_to_baseline"] = {
        name: median(
            [
                a["picture_cpu_seconds"] / b["picture_cpu_seconds"]
                for a, b in zip(runs[name], runs["baseline"], strict=True)
            ]
        )
        for name in options.precisions
    }
    report["cosine_to_baseline"] = {
        name: cosine(runs[name][0]["embedding"], runs["baseline"][0]["embedding"]) for name in options.precisions
    }
    for kind in ("boxes", "texts"):
        report[f"{kind}_gain"] = {
            name: median([run[f"{kind}_gain"] for run in runs[name]]) for name in options.precisions
        }
    return report


def median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def cosine(one: list[float], other: list[float]) -> float:
    return round(torch.nn.functional.cosine_similarity(torch.tensor(one), torch.tensor(other), dim=0).item(), 7)


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    source: Any = build(Path(options.folder), options.precision).eval()
    model: Any = source
    if options.child == "baseline":
        from published import Published, load_stock_vlm

        model = Published(source, load_stock_vlm(Path(options.folder))).eval()
    else:
        keep_freed_memory()
    batch = queries(source, range(ROWS))
    precision = torch.autocast("cpu", torch.bfloat16) if options.precision == "bfloat16" else nullcontext()
    with precision:
        embedding = model.encode(batch)[0]
        wall, cpu = timed(lambda: model.encode(batch))
        report = {
            "picture_seconds": round(wall / ROWS, 3),
            "picture_cpu_seconds": round(cpu / ROWS, 4),
            "peak_bytes": peak_memory(),
            "embedding": embedding.float().tolist(),
        }
        return report if options.child == "baseline" else report | gains(source)


def gains(model: Any) -> dict[str, Any]:
    """Return the speed-ups of three boxes of one image in one batch, and of texts sorted by length, in CPU time."""
    together_batch, single_batches = queries(model, [0, 0, 0]), [queries(model, [0]) for _ in range(3)]
    lengths = (4 + 124 * torch.rand(TEXTS, generator=torch.Generator().manual_seed(0)) ** 2).long().tolist()
    rows = texts(model, lengths)
    unsorted = [together(rows[start : start + 32]) for start in range(0, TEXTS, 32)]
    by_length = [together([rows[row] for row in chunk]) for chunk in cut_chunks(lengths, 32, 32 * max(lengths))]
    return {
        "boxes_gain": gain(
            [lambda: model.encode(together_batch)], [lambda row=row: model.encode(row) for row in single_batches]
        ),
        "texts_gain": gain(
            [lambda row=row: model.encode(row) for row in by_length],
            [lambda row=row: model.encode(row) for row in unsorted],
        ),
    }


def gain(ours: Sequence[Callable[[], Any]], others: Sequence[Callable[[], Any]]) -> float:
    ours[0]()
    return round(sum(timed(work)[1] for work in others) / sum(timed(work)[1] for work in ours), 3)


if __name__ == "__main__":
    main()
