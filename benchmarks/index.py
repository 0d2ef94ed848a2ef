"""An index of embeddings: recall@10 and queries per second against exact search, its growth, and what building costs.

One query at a time, in one run: `VectorIndex.search` with the settings that `virtue-pl index` found, LanceDB's own flat
search of the same table, and numpy's product with all vectors in memory, in turns, a few queries each. The vectors are
those of `--rows` without the queries, which are drawn from them; where there are fewer than a size, the rest are drawn
again with noise, by default as long as the median distance of a row to its nearest other. Without `--rows` they are
random centres with noise, and the queries vectors of the index with more of it. Each size is built in one process and
searched in another. Prints one JSON object; every rate is one over the median time of a query.

    python benchmarks/index.py --rows runs/regions --sizes 20000 200000 1000000
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
        about["sizes"] = {f"{size:,}": measure(size, Path(folder), options) for size in options.sizes}
    print(json.dumps(about, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="rows that `virtue-pl encode` wrote; default vectors around random centres")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000], help="1000000 takes some minutes")
    parser.add_argument("--dim", type=int, default=384, help="of random vectors")
    parser.add_argument("--clusters", type=int, default=2_000, help="of random vectors")
    parser.add_argument("--noise", type=float, help="length of the noise beside a unit vector; of random vectors 0.7")
    parser.add_argument("--kind", default="auto", help="of the index")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--exact-queries", type=int, default=30, help="of them for the slower exact searches")
    parser.add_argument("--turns", type=int, default=5, help="into which the queries are divided")
    parser.add_argument("--folder", type=Path, help="where the index is built; default the temporary folder")
    parser.add_argument("--stage", choices=("build", "search"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.noise is None:
        options.noise = nearest_distance(options.rows) if options.rows else 0.7
    return options


def describe(options: argparse.Namespace) -> str:
    """Return in words what the vectors are."""
    if options.rows:
        count = f"{RowFiles.open(options.rows).rows:,}"
        return f"the {count} of {options.rows}, beyond them with noise {options.noise:.3g} long; queries are held out"
    return f"no embeddings: {options.clusters:,} random centres of {options.dim} numbers, noise {options.noise:g} long"


def measure(size: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what building and searching an index of a size costs, each in a process of its own."""
    found = {}
    for stage in ("build", "search"):
        own = ["--sizes", str(size), "--folder", str(folder), "--stage", stage, "--noise", str(options.noise)]
        arguments = [*sys.argv[1:], *own]
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
    np.save(options.folder / f"queries-{size}.npy", draw_queries(size, options))
    before, began, cpu = peak_mib(), time.monotonic(), time.process_time()
    index = VectorIndex.build(rows, options.folder / f"index-{size}", IndexOptions(options.kind))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "vectors_mib": round(size * index.facts.dim * 4 / 2**20),
        "on_disk_mib": folder_mib(Path(index.uri)),
        "approximate_index_mib": folder_mib(Path(index.uri) / "rows.lance" / "_indices"),
        "settings": vars(index.settings),
    }


def search(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return recall@10 and the queries per second of each way to search, one query at a time."""
    index = VectorIndex.open(options.folder / f"index-{size}")
    queries = np.load(options.folder / f"queries-{size}.npy")
    few = queries[: options.exact_queries]
    found: dict[str, Any] = {"peak_mib_opened": peak_mib()}
    began = time.monotonic()
    index.search(queries[0], TOP)
    found["first_query_seconds"] = round(time.monotonic() - began, 3)
    for query in queries:
        index.search(query, TOP)
    found["peak_mib_searched"] = peak_mib()
    vectors = np.concatenate([to_matrix(batch["vector"]) for batch in index.table.search().to_batches(CHUNK)])
    ways = {
        "index": Way(lambda query: index.search(query, TOP)[0], queries),
        "flat": Way(lambda query: index.search(query, TOP, exact=True)[0], few),
        "product": Way(lambda query: nearest_by_product(vectors, query), few),
    }
    for turn in range(options.turns):
        for way in ways.values():
            way.take_turn(turn, options.turns)
    for name, way in ways.items():
        found[f"{name}_queries_per_second"] = round(1 / statistics.median(way.seconds), 2)
        found[f"{name}_queries_per_cpu_second"] = round(1 / statistics.median(way.cpu_seconds), 2)
    bounds = [np.sort(vectors @ query)[-TOP] - 1e-5 for query in queries]
    for name in ("index", "flat"):
        right = sum(hit.score >= bound for row, bound in zip(ways[name].hits, bounds, strict=False) for hit in row)
        found[f"{name}_recall@10"] = round(right / (TOP * len(ways[name].hits)), 4)
    for name in ("flat", "product"):
        for rate in ("queries_per_second", "queries_per_cpu_second"):
            found[f"to_{name}_{rate}"] = round(found[f"index_{rate}"] / found[f"{name}_{rate}"], 2)
    return found


class Way:
    """A way to search: its queries, and what each took."""

    def __init__(self, call: Callable[[np.ndarray], Any], queries: np.ndarray) -> None:
        self.call = call
        self.queries = queries
        self.hits: list[Any] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def take_turn(self, turn: int, turns: int) -> None:
        """Search with one part of the queries, behind one query that warms up."""
        self.call(self.queries[-1])
        for query in np.array_split(self.queries, turns)[turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            self.hits.append(self.call(query))
            self.seconds.append(time.perf_counter() - wall)
            self.cpu_seconds.append(time.process_time() - cpu)


def made_vectors(size: int, options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yield unit vectors: those of `--rows` first, then more of them with noise; or noise around random centres."""
    generator = np.random.default_rng(0)
    if options.rows:
        centres = split_rows(options)[0]
    else:
        centres = unit(generator.normal(size=(options.clusters, options.dim)))
    own = len(centres) if options.rows else 0
    for start in range(0, size, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, size))
        chosen = np.where(numbers < own, numbers, generator.integers(len(centres), size=len(numbers)))
        found = with_noise(centres[chosen], options.noise, generator)
        found[numbers < own] = centres[chosen[numbers < own]]
        yield found


def draw_queries(size: int, options: argparse.Namespace) -> np.ndarray:
    """Return the rows that are held out as queries, or else random vectors of the index with noise."""
    if options.rows:
        return split_rows(options)[1]
    generator = np.random.default_rng(1)
    made = np.concatenate([vectors[::50] for vectors in made_vectors(size, options)])
    return with_noise(generator.permutation(made)[: options.queries], options.noise, generator)


def split_rows(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of `--rows` in random order without the queries, and the queries."""
    vectors = np.random.default_rng(0).permutation(read_vectors(options.rows))
    return vectors[options.queries :], vectors[: options.queries]


def read_vectors(rows: str) -> np.ndarray:
    """Return the unit vectors of rows."""
    return unit(np.concatenate([to_matrix(batch["vector"]) for batch in RowFiles.open(rows).batches()]))


def nearest_distance(rows: str) -> float:
    """Return the median distance of a row to its nearest other, of 500 rows."""
    vectors = read_vectors(rows)
    drawn = np.random.default_rng(0).permutation(len(vectors))[:500]
    cosines = np.partition(vectors[drawn] @ vectors.T, -2, axis=1)[:, -2]
    return float(np.median(np.sqrt(np.maximum(2 - 2 * cosines, 0))))


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


def folder_mib(folder: Path) -> int:
    """Return the size of a folder's files."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20)


def peak_mib() -> int:
    """Return the most memory that this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
