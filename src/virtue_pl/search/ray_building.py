"""Building an index on Ray: its table by Ray Data, its approximate index by lance-ray, and searches of many queries."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from virtue_pl.cluster import ActorPool, RayOptions, data_context, ray_session
from virtue_pl.cluster.session import ray_errors
from virtue_pl.search.building import QUERIES_AT_ONCE, IndexBuilder, Stage, is_local
from virtue_pl.search.hits import Hit
from virtue_pl.search.index import VectorIndex
from virtue_pl.search.row_files import TABLE, RowFiles, check_vectors, lance_errors, open_table
from virtue_pl.types import VirtueError

FRAGMENT_ROWS = 2**20
"""Rows of a fragment of the table, of which an actor indexes several; of a small table a share for each actor."""
COLUMN = "vector"
SEGMENT_ACTOR = {"num_cpus": 0, "scheduling_strategy": "SPREAD", "max_restarts": 3, "max_task_retries": 3}
"""How Ray runs an actor that indexes segments: where one has gone with its node, there is room for it on another."""
CENTROIDS_OF_PQ = 256
"""Centroids for each of which product quantisation draws `sample_rate` rows."""


class RayBuilder(IndexBuilder):
    """A builder of the table and the approximate index on a cluster of Ray, or on one of this machine alone.

    Every node must see the rows and the index's folder under the same path.

    Example:
        >>> VectorIndex.build("/shared/rows", "/shared/index", builder=RayBuilder())  # doctest: +SKIP
    """

    def __init__(self, options: RayOptions = RayOptions()) -> None:
        self.options = options

    def session(self) -> AbstractContextManager[object]:
        """Return the connection to the cluster."""
        return ray_session(self.options)

    def write_rows(self, rows: RowFiles, location: str, storage: dict[str, str], replace: bool, stage: Stage) -> Any:
        """Write rows as the table of an index, in one transaction; returns the table.

        Raises VirtueError for rows that cannot be indexed, and where the table has other rows than there were.
        """
        stage("writing", 0)
        uri = table_uri(location)
        with ray_session(self.options) as ray, data_context(ray, in_order=True), ray_errors(), lance_errors(location):
            import lance_ray

            pool = ActorPool.of_cluster(ray, self.options)
            lance_ray.write_lance(
                read_rows(ray, rows),
                uri,
                schema=rows.schema,
                mode="overwrite" if replace else "create",
                min_rows_per_file=1,
                max_rows_per_file=max(1, min(FRAGMENT_ROWS, -(-rows.rows // pool.actors))),
                storage_options=storage or None,
            )
        table = open_table(location, TABLE, storage)
        if table.count_rows() != rows.rows:
            raise VirtueError(
                f"{rows.source}: {table.count_rows():,} of {rows.rows:,} rows were written: do the nodes see the same"
                " files, and does nothing write to them?"
            )
        return table

    def create_index(self, table: Any, location: str, storage: dict[str, str], config: Any) -> None:
        """Build the approximate index that LanceDB's configuration describes, on segments of the table."""
        with ray_session(self.options) as ray, ray_errors():
            import lance_ray

            pool = ActorPool.of_cluster(ray, self.options)
            lance_ray.create_index(
                table_uri(location),
                COLUMN,
                name=f"{COLUMN}_idx",
                num_workers=pool.actors,
                storage_options=storage or None,
                ray_remote_args=SEGMENT_ACTOR,
                **index_arguments(config, int(table.count_rows())),
            )
        table.checkout_latest()


def table_uri(location: str) -> str:
    """Return the URI of the table in an index's folder."""
    return f"{location.rstrip('/')}/{TABLE}.lance"


def index_arguments(config: Any, rows: int) -> dict[str, Any]:
    """Return LanceDB's configuration of an index as arguments of `lance_ray.create_index`.

    Example:
        >>> from lancedb.index import IvfRq
        >>> found = index_arguments(IvfRq(distance_type="cosine", num_partitions=10), rows=1000)
        >>> found["index_type"], found["sample_rate"]
        ('IVF_RQ', 100)
    """
    values = {name: value for name, value in vars(config).items() if value is not None}
    names = [part.upper() for part in re.findall("[A-Z][a-z]+", type(config).__name__)]
    index_type = "_".join(names if names[0] == "IVF" else ["IVF", *names])
    partitions = values.get("num_partitions", 1)
    drawn_for = max(partitions, CENTROIDS_OF_PQ if names[-1] == "PQ" else 1)
    found = {"index_type": index_type, "metric": values.pop("distance_type")}
    found["sample_rate"] = max(2, min(values.pop("sample_rate"), rows // drawn_for))
    found["max_iters"] = values.pop("max_iterations")
    return found | values


def read_rows(ray: Any, rows: RowFiles) -> Any:
    """Return a dataset of rows that are checked as those of one process are; a Lance table is read by lance-ray."""
    if rows.files:
        files = ray.data.from_items([{"file": file} for file in rows.files], override_num_blocks=len(rows.files))
        return files.map_batches(FileReader(rows), batch_size=1, batch_format="pyarrow")
    import lance_ray

    table = lance_ray.read_lance(rows.source, storage_options=dict(rows.storage_options) or None)
    return table.map_batches(RowChecker(rows.schema, rows.source), batch_format="pyarrow")


@dataclass(frozen=True)
class FileReader:
    """A task that reads files of rows as `RowFiles` does.

    Example:
        >>> batch = next(FileReader(rows)(pa.table({"file": rows.files[:1]})))  # doctest: +SKIP
    """

    rows: RowFiles

    @property
    def __name__(self) -> str:
        """The name of the task, as Ray shows it."""
        return "read_rows"

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of each file, in batches."""
        for file in batch["file"].to_pylist():
            for found in replace(self.rows, files=(file,)).batches():
                yield pa.Table.from_batches([found])


@dataclass(frozen=True)
class RowChecker:
    """A task that checks the vectors of rows, and orders their columns.

    Example:
        >>> RowChecker(pa.schema([("id", pa.string())]), "rows").source
        'rows'
    """

    schema: pa.Schema
    source: str

    @property
    def __name__(self) -> str:
        """The name of the task, as Ray shows it."""
        return "check_rows"

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows in the schema's order. Raises VirtueError for a vector that is no direction."""
        ordered = batch.select(self.schema.names).cast(self.schema)
        for each in ordered.to_batches():
            check_vectors(each, self.source)
        return ordered


class SearchActor:
    """An actor that has an index open, and searches for many queries at once.

    Example:
        >>> SearchActor("/shared/index", {}, 10, None, False)(pa.table({"query": [[0.5] * 384]}))  # doctest: +SKIP
    """

    def __init__(self, uri: str, storage: dict[str, str], top: int, where: str | None, exact: bool) -> None:
        self.uri, self.storage = uri, storage
        self.options = (top, where, exact)

    @cached_property
    def index(self) -> VectorIndex:
        """The index; what is wrong with it is an error of the first search."""
        return VectorIndex.open(self.uri, self.storage)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the hits of each row of a batch, pickled."""
        found = self.index.search(np.asarray(batch["query"].to_pylist(), dtype=np.float32), *self.options)
        return pa.table({"hits": pa.array([pickle.dumps(hits) for hits in found], pa.large_binary())})


def search_on_ray(
    index: VectorIndex,
    vectors: Any,
    top: int = 10,
    where: str | None = None,
    exact: bool = False,
    storage_options: Mapping[str, str] | None = None,
    options: RayOptions = RayOptions(),
) -> list[list[Hit]]:
    """Return what `VectorIndex.search` returns, found by actors that share the queries, and have the index open each.

    It is for thousands of queries: `lance_ray.vector_search` takes one at a time, and seconds for it.

    Args:
        index: opened by a path that all nodes see, or in object storage.
        vectors, top, where, exact: see `VectorIndex.search`.
        storage_options: of object storage, as LanceDB takes them.
        options: of the session on Ray.

    Raises VirtueError as `VectorIndex.search` does, and where the cluster cannot be reached.
    """
    queries = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    uri = str(Path(index.uri).absolute()) if is_local(index.uri) else index.uri
    if not len(queries):
        return []
    with ray_session(options) as ray, data_context(ray, in_order=True), ray_errors():
        pool = ActorPool.of_cluster(ray, options)
        starts = range(0, len(queries), QUERIES_AT_ONCE)
        chunks = [pa.table({"query": list(queries[start : start + QUERIES_AT_ONCE])}) for start in starts]
        found = ray.data.from_arrow(chunks).map_batches(
            SearchActor,
            fn_constructor_args=(uri, dict(storage_options or {}), top, where, exact),
            batch_size=QUERIES_AT_ONCE,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool.actors, len(chunks))),
        )
        return [pickle.loads(row["hits"]) for row in found.iter_rows()]
