"""An index of embeddings: recall@10 and queries per second against exact search, its growth, and what building costs.

One query at a time, in one run: `VectorIndex.search` with the settings that `virtue-pl index` found, LanceDB's own flat
search of the same table, and numpy's product with all vectors in memory. The vectors are those of `--rows`, enlarged by
noise where there are fewer, or else drawn around random centres; the queries are vectors with more noise of that kind.
Each size is built in one process and searched in another. Prints one JSON object.

    python benchmarks/index.py --sizes 20000 200000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from virtue_pl.search import EncodedRow, EncodingFacts, IndexOptions, RowFiles, VectorIndex, row_schema, to_table
from virtue_pl.search.row_files import to_matrix

CHUNK = 10_000
"""Rows that are made and written at once."""
TOP = 10


def main() -> None:
    options = parse()
    if options.stage:
        stage = {"build": build, "search": search}[options.stage]
        print(json.dumps(stage(options.sizes[0], options)))
        return
    about: dict[str, Any] = {
        "vectors": describe(options),
        "lancedb": version("lancedb"),
        "numpy": version("numpy"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads of numpy": os.environ.get("OMP_NUM_THREADS", "all"),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        about["sizes"] = {f"{size:,}": measure(size, Path(folder)) for size in options.sizes}
    print(json.dumps(about, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="rows that `virtue-pl encode` wrote; default vectors around random centres")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000], help="1000000 takes some minutes")
    parser.add_argument("--dim", type=int, default=384, help="of random vectors")
    parser.add_argument("--clusters", type=int, default=2_000, help="of random vectors")
    parser.add_argument("--noise", type=float, default=0.7, help="length of the noise beside a unit vector")
    parser.add_argument("--kind", default="auto", help="of the index")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--exact-queries", type=int, default=30, help="of them for the slower exact searches")
    parser.add_argument("--folder", type=Path, help="where the index is built; default the temporary folder")
    parser.add_argument("--stage", choices=("build", "search"), help=argparse.SUPPRESS)
    return parser.parse_args()


def describe(options: argparse.Namespace) -> str:
    """Return in words what the vectors are."""
    if options.rows:
        return f"{options.rows}, beyond its own rows with noise of length {options.noise:g}"
    return f"no embeddings: {options.clusters:,} random centres of {options.dim} numbers, noise {options.noise:g} long"


def measure(size: int, folder: Path) -> dict[str, Any]:
    """Return what building and searching an index of a size costs, each in a process of its own."""
    found = {}
    for stage in ("build", "search"):
        arguments = [*sys.argv[1:], "--sizes", str(size), "--folder", str(folder), "--stage", stage]
        done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        found[stage] = json.loads(done.stdout)
    return found


def build(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Write rows and build their index, whose parts are measured apart."""
    rows = options.folder / f"rows-{size}"
    rows.mkdir()
    for number, vectors in enumerate(made_vectors(size, options)):
        facts = EncodingFacts("0" * 64, "none", vectors.shape[1])
        encoded = [EncodedRow(f"{number}-{row}", str(number), vector) for row, vector in enumerate(vectors)]
        pq.write_table(to_table(encoded, row_schema(facts)), rows / f"part-{number:06d}.parquet")
    before, began, cpu = peak_mib(), time.monotonic(), time.process_time()
    index = VectorIndex.build(rows, options.folder / f"index-{size}", IndexOptions(options.kind))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "vectors_mib": round(size * index.facts.dim * 4 / 2**20),
        "on_disk_mib": round(sum(path.stat().st_size for path in Path(index.uri).rglob("*") if path.is_file()) / 2**20),
        "settings": vars(index.settings),
    }


def search(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return recall@10 and the queries per second of each way to search, one query at a time."""
    index = VectorIndex.open(options.folder / f"index-{size}")
    opened = peak_mib()
    found: dict[str, Any] = {"peak_mib_opened": opened}
    queries = draw_queries(index, options)
    seconds, hits = timed(lambda query: index.search(query, TOP)[0], queries)
    found |= {"queries_per_second": round(1 / seconds, 1), "peak_mib_searched": peak_mib()}
    seconds, flat = timed(lambda query: index.search(query, TOP, exact=True)[0], queries[: options.exact_queries])
    found["flat_queries_per_second"] = round(1 / seconds, 2)
    vectors = np.concatenate([to_matrix(batch["vector"]) for batch in index.table.search().to_batches(CHUNK)])
    seconds, _ = timed(lambda query: nearest_by_product(vectors, query), queries[: options.exact_queries])
    found["product_queries_per_second"] = round(1 / seconds, 2)
    bounds = [np.sort(vectors @ query)[-TOP] - 1e-5 for query in queries]
    right = sum(hit.score >= bound for row, bound in zip(hits, bounds, strict=True) for hit in row)
    right_flat = sum(hit.score >= bound for row, bound in zip(flat, bounds, strict=False) for hit in row)
    found["recall@10"] = round(right / (TOP * len(queries)), 4)
    found["flat_recall@10"] = round(right_flat / (TOP * len(flat)), 4)
    for name in ("flat", "product"):
        found[f"to_{name}"] = round(found["queries_per_second"] / found[f"{name}_queries_per_second"], 1)
    return found


def made_vectors(size: int, options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yield unit vectors: those of `--rows` first, then more of them with noise; or noise around random centres."""
    generator = np.random.default_rng(0)
    if options.rows:
        centres = np.concatenate([to_matrix(batch["vector"]) for batch in RowFiles.open(options.rows).batches()])
    else:
        centres = unit(generator.normal(size=(options.clusters, options.dim)))
    own = len(centres) if options.rows else 0
    for start in range(0, size, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, size))
        chosen = np.where(numbers < own, numbers, generator.integers(len(centres), size=len(numbers)))
        found = with_noise(centres[chosen], options.noise, generator)
        found[numbers < own] = centres[chosen[numbers < own]]
        yield found


def draw_queries(index: VectorIndex, options: argparse.Namespace) -> np.ndarray:
    """Return random vectors of the index with noise."""
    generator = np.random.default_rng(1)
    chosen = sorted(generator.choice(len(index), options.queries, replace=False).tolist())
    found = to_matrix(index.table.take_offsets(chosen).select(["vector"]).to_arrow()["vector"])
    return with_noise(generator.permutation(found), options.noise, generator)


def with_noise(vectors: np.ndarray, length: float, generator: np.random.Generator) -> np.ndarray:
    """Return unit vectors with noise of about a length beside them, of length 1 again."""
    noise = generator.normal(scale=length / np.sqrt(vectors.shape[1]), size=vectors.shape)
    return unit(vectors + noise)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors of length 1."""
    found: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def nearest_by_product(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the numbers of the nearest vectors, best first."""
    scores = vectors @ query
    best = np.argpartition(-scores, TOP)[:TOP]
    return best[np.argsort(-scores[best])]


def timed(call: Callable[[np.ndarray], Any], queries: np.ndarray) -> tuple[float, list[Any]]:
    """Return the seconds of a call, without the first three, which warm up, and what all of them return."""
    for query in queries[:3]:
        call(query)
    began = time.monotonic()
    found = [call(query) for query in queries]
    return (time.monotonic() - began) / len(queries), found


def peak_mib() -> int:
    """Return the most memory that this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
