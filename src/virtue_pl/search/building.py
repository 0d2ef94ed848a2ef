"""Building an index: rows into a table, the approximate index, its recall, and the place where it is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from virtue_pl.search.hits import nearest
from virtue_pl.search.row_files import TABLE, RowFiles, import_lancedb, lance_errors, to_matrix
from virtue_pl.search.settings import IndexOptions, SearchSettings
from virtue_pl.types import VirtueError

RECALL_AT = 10
QUERIES_AT_ONCE = 256
TIE = 1e-5
"""Difference of two cosines within which neither is the nearer one."""

Stage = Callable[[str, int], None]
"""Called with what is being done and the rows that are done."""


def write_rows(rows: RowFiles, location: str, storage: dict[str, str], replace: bool, stage: Stage) -> Any:
    """Write rows as the table of an index, in one transaction; returns the table."""

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in rows.batches():
            yield batch
            done += len(batch)
            stage("writing", done)

    reader = pa.RecordBatchReader.from_batches(rows.schema, batches())
    database = import_lancedb().connect(location, storage_options=storage or None)
    with lance_errors(location):
        return database.create_table(TABLE, data=reader, schema=rows.schema, mode="overwrite" if replace else "create")


class IndexBuilder:
    """A builder of the table and the approximate index, in this process; on a cluster it is a `RayBuilder`.

    Example:
        >>> VectorIndex.build("runs/encoded", "runs/index", builder=IndexBuilder())  # doctest: +SKIP
    """

    def session(self) -> AbstractContextManager[object]:
        """Return a context in which the other methods may be called; it may be entered within itself."""
        return nullcontext()

    def write_rows(self, rows: RowFiles, location: str, storage: dict[str, str], replace: bool, stage: Stage) -> Any:
        """Write rows as the table of an index, in one transaction; returns the table."""
        return write_rows(rows, location, storage, replace, stage)

    def create_index(self, table: Any, location: str, storage: dict[str, str], config: Any) -> None:
        """Build the approximate index that LanceDB's configuration describes."""
        table.create_index("vector", config=config)


def build_ann(table: Any, options: IndexOptions, stage: Stage, create_index: Callable[[Any], None]) -> SearchSettings:
    """Build the approximate index of a table, where it has one, and widen its searches until the recall is reached.

    create_index: builds the index that LanceDB's configuration describes.
    """
    count = int(table.count_rows())
    settings = SearchSettings.of_kind(options.resolve_kind(count), count)
    if settings.kind == "exact":
        return settings
    stage(f"building {settings.kind}", 0)
    create_index(settings.config())
    stage("measuring recall", 0)
    queries = draw_queries(table, options.queries, options.seed)
    bounds = exact_bounds(table, queries, min(RECALL_AT + 1, count))
    while True:
        recall = measure_recall(table, queries, bounds, settings)
        if recall >= options.recall or settings.is_widest():
            return settings.changed(recall=recall, queries=len(queries))
        settings = settings.wider()


def draw_queries(table: Any, count: int, seed: int) -> np.ndarray:
    """Return the vectors of `count` rows, or of all where there are fewer, drawn at random."""
    rows = int(table.count_rows())
    chosen = np.random.default_rng(seed).choice(rows, min(count, rows), replace=False)
    return to_matrix(table.take_offsets(sorted(chosen.tolist())).select(["vector"]).to_arrow()["vector"])


def exact_bounds(table: Any, queries: np.ndarray, top: int) -> np.ndarray:
    """Return each query's `top`-th largest cosine among all rows [queries], in one pass over the table."""
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.full((len(queries), top), -np.inf, dtype=np.float32)
    for batch in table.search().select(["vector"]).to_batches(8192):
        vectors = to_matrix(batch.column("vector"))
        scores = unit @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        best = -np.partition(-np.concatenate([best, scores], axis=1), top - 1, axis=1)[:, :top]
    bounds: np.ndarray = best.min(axis=1)
    return bounds


def measure_recall(table: Any, queries: np.ndarray, bounds: np.ndarray, settings: SearchSettings) -> float:
    """Return the share of the exact nearest rows that an approximate search finds; rows of equal cosine are equal.

    queries: vectors of rows; of each query's nearest rows one is itself, and does not count.
    bounds: from `exact_bounds`, of the same number of nearest rows, `RECALL_AT` and itself, or all.
    """
    top = min(RECALL_AT + 1, int(table.count_rows()))
    if top == 1:
        return 1.0
    found = [
        rows
        for start in range(0, len(queries), QUERIES_AT_ONCE)
        for rows in nearest(table, queries[start : start + QUERIES_AT_ONCE], top, settings, ["id"])
    ]
    right = [
        sum(1 - row["_distance"] >= bound - TIE for row in rows)
        for rows, bound in zip(found, bounds.tolist(), strict=True)
    ]
    return sum(max(count - 1, 0) for count in right) / ((top - 1) * len(queries))


@contextmanager
def new_location(uri: str, replace: bool, storage: dict[str, str]) -> Iterator[str]:
    """Provide the place where an index is built: a folder beside `uri`, which takes its place when the block ends.

    In object storage it is `uri` itself. Raises VirtueError for an index that is there, unless it is to be replaced.
    """
    if not is_local(uri):
        if not replace and TABLE in import_lancedb().connect(uri, storage_options=storage or None).list_tables().tables:
            raise VirtueError(f"{uri} is there already: give another --out, or --replace")
        yield uri
        return
    target = Path(uri)
    if target.exists() and (not replace or not is_index_or_empty(target)):
        wrong = "is there already: give another --out, or --replace" if is_index_or_empty(target) else "is no index"
        raise VirtueError(f"{uri} {wrong}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:12]}")
    try:
        yield str(temporary)
        if target.exists():
            before = target.with_name(f".{target.name}.{uuid4().hex[:12]}")
            target.rename(before)
            temporary.rename(target)
            shutil.rmtree(before)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_index_or_empty(folder: Path) -> bool:
    """Return whether a folder holds an index and nothing else, or nothing at all."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {f"{TABLE}.lance"}


def is_local(uri: str) -> bool:
    """Return whether a URI is a path of this machine."""
    return "://" not in uri
