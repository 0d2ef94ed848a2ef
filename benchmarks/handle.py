"""What a further prompt costs on an image whose towers have run, and many regions of one image, in CPU seconds.

The mid-size model with random weights, float32, one box a row: `embedder.image(x).encode(prompt)` on a handle that has
encoded before, and `embedder.image(x).regions(boxes=...)` on one that has not, each to `embedder.encode` of one row of
the same image, with no cache. The three take turns in one process. Prints one JSON object.

    python benchmarks/handle.py --rounds 5 --regions 32
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mid_size import IMAGE_SIZE, build, make_image, timed, write_model

from virtue_pl.cli.memory import join_freed_memory, keep_freed_memory
from virtue_pl.embedder import Embedder
from virtue_pl.types import VisualPrompt

TEXT = "Represent the given image with the following question: which of these things is it?"


def main() -> None:
    join_freed_memory()
    keep_freed_memory()
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = build(write_model(Path(folder)), "float32")
        found = measure(Embedder(model, "cpu", cached_images=0), options)
    about = {
        "torch": version("torch"),
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "rounds": options.rounds,
    }
    print(json.dumps({**about, **found}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--regions", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def measure(embedder: Embedder, options: argparse.Namespace) -> dict[str, Any]:
    """Return the CPU seconds of each way, their ratios, and how far the embeddings differ."""
    boxes = draw_boxes(options.regions)
    prompts = [VisualPrompt.from_pixels(boxes=[box], size=(IMAGE_SIZE, IMAGE_SIZE)) for box in boxes]
    embedder.encode(TEXT, make_image(0), prompts[0])
    seconds: dict[str, list[float]] = {"full": [], "next_prompt": [], "regions": []}
    furthest = 0.0
    for round_number in range(1, options.rounds + 1):
        image = make_image(round_number)
        found: dict[str, Any] = {}

        def run(way: str, work: Any) -> None:
            seconds[way].append(timed(lambda: found.update({way: work()}))[1])

        run("full", lambda: embedder.encode(TEXT, image, prompts[0])[0])
        run("regions", lambda: embedder.image(image).regions(boxes=boxes, text=TEXT))
        handle = embedder.image(image)
        handle.encode(prompts[-1], TEXT)
        run("next_prompt", lambda: handle.encode(prompts[0], TEXT))
        furthest = max(furthest, *(float(np.abs(found["full"] - each).max()) for each in (found["next_prompt"], found["regions"][0])))
    full, following, regions = (statistics.median(each) for each in seconds.values())
    return {
        "full_cpu_seconds": round(full, 3),
        "next_prompt_cpu_seconds": round(following, 3),
        "next_prompt_to_full": ratio(seconds["next_prompt"], seconds["full"]),
        f"{options.regions}_regions_cpu_seconds": round(regions, 3),
        "times_as_fast_as_one_by_one": round(options.regions / ratio(seconds["regions"], seconds["full"]), 2),
        "largest_difference": furthest,
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return round(statistics.median(one / other for one, other in zip(ours, theirs, strict=True)), 3)


def draw_boxes(count: int) -> list[list[int]]:
    """Return boxes of random sizes within the image."""
    generator = np.random.default_rng(0)
    corners = generator.integers(0, IMAGE_SIZE // 2, size=(count, 2))
    sizes = generator.integers(20, IMAGE_SIZE // 2, size=(count, 2))
    return np.concatenate([corners, corners + sizes], axis=1).tolist()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
