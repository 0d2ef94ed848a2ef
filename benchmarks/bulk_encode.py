"""Bulk encoding compared to the bare loop: `virtue-pl encode` on a folder of photographs, and `Embedder.encode` on it.

One thread of torch. Both encode the same synthetic JPEGs of 640 x 480 with the same model in one process, in turns,
each time all of them: the mid-size model (`mid_size.py`) with random weights, or with --model another one. `loop` is
`Embedder.encode` on the list of paths; `bulk` reads, encodes and commits parts of parquet. Prints one JSON object:
images per CPU second of both, their ratio (`share`, 0.9 or more), the largest difference of a vector, and the
peak of memory.

    python benchmarks/bulk_encode.py --images 32 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from mid_size import build, make_image, timed, write_model
from PIL import Image

from virtue_pl.apps.encoding import EncodeOptions, encode_source, open_source
from virtue_pl.apps.encoding.sources import SourceOptions
from virtue_pl.cli.memory import keep_freed_memory
from virtue_pl.embedder import Embedder

WIDTH, HEIGHT = 640, 480


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        embedder = load(options.model, folder)
        paths = write_photos(folder / "photos", options.images)
        print(json.dumps(compare(embedder, paths, folder, options), indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", help="instead of the mid-size model")
    return parser.parse_args()


def load(model: str | None, folder: Path) -> Embedder:
    """Return the embedder, whose cache of images never holds one of the round before."""
    if model is not None:
        return Embedder.from_pretrained(model, device="cpu", cached_images=0)
    return Embedder(build(write_model(folder / "qwen2_vl"), "float32"), "cpu", cached_images=0)


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write JPEGs that are no two alike, with some detail, and return their paths."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        coarse = make_image(number).permute(1, 2, 0).numpy().astype(np.int16)
        noise = np.random.default_rng(number).integers(-12, 12, coarse.shape)
        pixels = (coarse + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(path, quality=90)
    return paths


def compare(embedder: Embedder, paths: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    embedder.encode(None, paths[:2], batch_size=2)  # what the first batch alone costs
    spent: dict[str, list[tuple[float, float]]] = {"loop": [], "bulk": []}
    expected: list[Any] = []
    for turn in range(options.rounds):
        spent["loop"].append(
            timed(lambda: expected.append(embedder.encode(None, paths, batch_size=options.batch_size)))
        )
        spent["bulk"].append(timed(lambda turn=turn: bulk(embedder, paths[0].parent, folder / f"out{turn}", options)))
    rows = pq.read_table(folder / "out0")
    vectors = np.stack(rows["vector"].to_numpy(zero_copy_only=False))
    rates = {name: round(len(paths) / statistics.median(cpu for _, cpu in found), 3) for name, found in spent.items()}
    shares = [loop[1] / ours[1] for loop, ours in zip(spent["loop"], spent["bulk"], strict=True)]
    return {
        "images": len(paths),
        "rounds": options.rounds,
        "batch_size": options.batch_size,
        "model": options.model or "mid-size",
        "images_per_cpu_second": rates,
        "seconds": {name: round(statistics.median(wall for wall, _ in found), 2) for name, found in spent.items()},
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "largest_difference": float(abs(vectors - expected[0]).max()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def bulk(embedder: Embedder, photos: Path, out: Path, options: argparse.Namespace) -> None:
    encode_source(embedder, open_source(photos, SourceOptions()), out, EncodeOptions(batch_size=options.batch_size))


if __name__ == "__main__":
    main()
