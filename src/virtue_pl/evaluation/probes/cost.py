"""Cost of embedding: latency of an image's first and next prompt, throughput and peak memory, by kind of query."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.embedder import Embedder
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

QUESTION = "Find the caption that best describes the object."
PROCESS = Path("/proc/self")


def measure_cost(
    embedder: Embedder, image: UInt8[Tensor, "3 height width"], rows: int = 8, repeats: int = 5
) -> dict[str, Any]:
    """Measure the cost of every kind of query on an image like the given one.

    Returns, for JSON, device, dtype, threads, image ([width, height]), rows, repeats, and `modes`: by kind of query

    first_s, next_s: seconds of the first query on an image, and of a further one on the same image (median of
        `repeats`); the latter is null for texts. rows_per_second: with `rows` different images at once.
        peak_memory_bytes: the most that the device had allocated, or on a CPU the process's resident memory; null where
        the system does not report it.

    Every query passes through `Embedder.embed`, and its preparation counts. "crop" is a baseline: the region alone as
    an image. Raises VirtueError for fewer than one row or repeat.
    """
    if rows < 1 or repeats < 1:
        raise VirtueError(f"rows is {rows}, repeats {repeats}, expected at least 1 each")
    about = {
        "device": torch.cuda.get_device_name(embedder.device) if embedder.device.type == "cuda" else "cpu",
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "image": [image.shape[2], image.shape[1]],
        "rows": rows,
        "repeats": repeats,
    }
    return {
        **about,
        "modes": {mode: mode_cost(embedder, query, image, rows, repeats) for mode, query in QUERIES.items()},
    }


Query = Callable[[Tensor, int], EmbeddingInput]
"""(image, number) -> a query on the image, whose prompt or text differs for every number"""


def mode_cost(
    embedder: Embedder, query: Query, image: UInt8[Tensor, "3 height width"], rows: int, repeats: int
) -> dict[str, float | int | None]:
    """Measure one kind of query, after a warm-up."""
    others = [image.roll(number + 1, dims=2) for number in range(rows)]
    embedder.embed([query(image, 0)])
    with peak_memory(embedder.device) as peak:
        first, following, together = [], [], []
        for number in range(repeats):
            first.append(embedding_seconds(embedder, [query(image, 2 * number)], forget=True))
            following.append(embedding_seconds(embedder, [query(image, 2 * number + 1)], forget=False))
            together.append(
                embedding_seconds(embedder, [query(other, number) for number, other in enumerate(others)], forget=True)
            )
    return {
        "first_s": statistics.median(first),
        "next_s": statistics.median(following) if query(image, 0).images else None,
        "rows_per_second": rows / statistics.median(together),
        "peak_memory_bytes": peak.get("bytes"),
    }


def embedding_seconds(embedder: Embedder, items: Sequence[EmbeddingInput], forget: bool) -> float:
    """Return the duration of embedding, in seconds. forget: clear the cache of image features first."""
    if forget:
        embedder.feature_cache.clear()
    start = time.perf_counter()
    embedder.embed(items)
    return time.perf_counter() - start


def half_extent(number: int) -> float:
    """Return half of a region's extent as a share of the image's, different for every number: from 0.1 to 0.4."""
    return 0.1 + 0.3 * ((number * 0.618034) % 1)


def text_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a caption as a query without an image."""
    return EmbeddingInput(f"A caption of an object in its place, number {number}.")


def image_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a query on the whole image."""
    return EmbeddingInput(f"{QUESTION} {number}", (image,))


def point_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a query with a click."""
    return EmbeddingInput(
        QUESTION,
        (image,),
        VisualPrompt(points=torch.full((1, 2), half_extent(number)), point_labels=torch.ones(1, dtype=torch.long)),
    )


def box_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a query with a box in the middle."""
    half = half_extent(number)
    return EmbeddingInput(
        QUESTION, (image,), VisualPrompt(boxes=torch.tensor([[0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half]]))
    )


def mask_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a query with a mask in the middle."""
    mask = torch.zeros(1, *image.shape[1:], dtype=torch.bool)
    mask[(slice(None), *region(image, number))] = True
    return EmbeddingInput(QUESTION, (image,), VisualPrompt(masks=mask))


def crop_query(image: Tensor, number: int) -> EmbeddingInput:
    """Return a query on the region in the middle, cut out."""
    rows, columns = region(image, number)
    return EmbeddingInput(QUESTION, (image[:, rows, columns].contiguous(),))


def region(image: Tensor, number: int) -> tuple[slice, slice]:
    """Return rows and columns of the region in the middle."""
    height, width = image.shape[1:]
    half = half_extent(number)
    rows, columns = (slice(int((0.5 - half) * length), int((0.5 + half) * length)) for length in (height, width))
    return rows, columns


QUERIES: dict[str, Query] = {
    "text": text_query,
    "image": image_query,
    "point": point_query,
    "box": box_query,
    "mask": mask_query,
    "crop": crop_query,
}


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Measure the peak of allocated memory: afterwards the dictionary has "bytes", if the system reports it."""
    found: dict[str, int] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found["bytes"] = torch.cuda.max_memory_allocated(device)
        return
    try:
        (PROCESS / "clear_refs").write_text("5")  # resets the peak: proc(5)
    except OSError:
        yield found
        return
    yield found
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    found["bytes"] = int(lines["VmHWM"].split()[0]) * 1024
