"""Cost of a further prompt on an image whose towers have run, and of many regions of one image, by the mid-size model.

One thread, float32, CPU seconds, in one process by turns, with no cache but the handle's own. Prints a JSON object.

    python benchmarks/handle.py --rounds 5

- `next_prompt`: `handle.encode` of another box, compared to `Embedder.encode` of an image and a box.
- `regions`: a new handle and its `regions` of 32 boxes, compared to 32 such encodings. A region's tokens stand before
  the image's, which attend to them: the language model reads the whole sequence for each region. What it alone takes,
  `language_model`, bounds the gain (`largest_gain`).

The embeddings of both ways must agree to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mid_size import IMAGE_SIZE, Stages, build, make_image, timed, write_model

from virtue_pl.embedder import Embedder
from virtue_pl.types import VisualPrompt

QUESTION = "What is this?"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = build(write_model(Path(folder) / "qwen2_vl"), "float32")
    embedder = Embedder(model, "cpu", batch_size=options.batch_size, cached_images=0)
    print(json.dumps({**about(options), **measure(embedder, options)}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each way, after one that is not counted")
    parser.add_argument("--regions", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a batch of regions")
    return parser.parse_args()


def about(options: argparse.Namespace) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    return {**vars(options), "date": str(date.today()), "torch": torch.__version__, "processor": processor}


def measure(embedder: Embedder, options: argparse.Namespace) -> dict[str, Any]:
    boxes = [
        [10 + 3 * number, 20 + 2 * number, 150 + 4 * number, 180 + 3 * number] for number in range(options.regions)
    ]
    prompts = [VisualPrompt.from_pixels(boxes=[box], size=(IMAGE_SIZE, IMAGE_SIZE)) for box in boxes]
    stages = Stages()
    stages.wrap(embedder.model.fusion, "forward", "language_model")
    whole, following, regions, language_model = [], [], [], []
    difference = 0.0
    for number in range(options.rounds + 1):
        image, prompt = make_image(number), prompts[number % len(prompts)]
        found: dict[str, Any] = {}
        whole.append(timed(lambda: found.update(whole=embedder.encode(QUESTION, image, prompt)))[1])  # noqa: B023
        handle = embedder.image(image)
        handle.encode(prompts[0], QUESTION)
        following.append(timed(lambda: found.update(next=handle.encode(prompt, QUESTION)))[1])  # noqa: B023
        stages.spent.clear()
        regions.append(timed(lambda: found.update(regions=regions_of(embedder, image, boxes)))[1])  # noqa: B023
        language_model.append(stages.spent["language_model"][1])
        same = found["regions"][number % len(prompts)]
        difference = max(difference, *(float(np.abs(found["whole"][0] - each).max()) for each in (found["next"], same)))
    columns = (whole, following, regions, language_model)
    full, further, many, least = (statistics.median(seconds[1:]) for seconds in columns)
    assert difference < 1e-5, difference
    return {
        "cpu_seconds": {
            "encoding": round(full, 3),
            "next_prompt": round(further, 3),
            "regions": round(many, 3),
            "language_model": round(least, 3),
        },
        "next_prompt_share": round(further / full, 3),
        "regions_gain": round(options.regions * full / many, 2),
        "largest_gain": round(options.regions * full / least, 2),
        "largest_difference": difference,
    }


def regions_of(embedder: Embedder, image: torch.Tensor, boxes: list[list[int]]) -> np.ndarray:
    found: np.ndarray = embedder.image(image).regions(boxes=boxes, text=QUESTION)
    return found


if __name__ == "__main__":
    main()
