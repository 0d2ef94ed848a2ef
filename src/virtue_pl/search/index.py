"""The index of encoded rows: a LanceDB table in a folder or in object storage, searched exactly or approximately."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from virtue_pl.search.row_files import RowFiles, first_line, import_lancedb, open_table, to_matrix
from virtue_pl.search.rows import OWN_COLUMNS, EncodingFacts
from virtue_pl.search.settings import IndexOptions, SearchSettings
from virtue_pl.types import VirtueError
from virtue_pl.types.paths import suggest_path

TABLE = "rows"
"""Name of the table in the index's folder."""
RECALL_AT = 10
QUERIES_AT_ONCE = 256
TIE = 1e-5
"""Difference of two cosines within which neither is the nearer one."""

Stage = Callable[[str, int], None]
"""Called with what is being done and the rows that are done."""


@dataclass(frozen=True)
class Hit:
    """One row that a search found.

    score: cosine of the query's vector and the row's. id, document, image, text, region, box, mask, quality: see
    `EncodedRow`. columns: its document's own values.

    Example:
        >>> Hit(1, 0.83, "street.jpg#0", "street.jpg", "street.jpg", region=0).name
        'street.jpg#0'
    """

    rank: int
    score: float
    id: str
    document: str
    image: str | None = None
    text: str | None = None
    region: int | None = None
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    quality: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row's document, and the number of its region."""
        return self.document if self.region is None else f"{self.document}#{self.region}"


class VectorIndex:
    """An index of encoded rows, opened for searching.

    Args:
        uri: its folder, or a URI of object storage.
        table: LanceDB's table.

    Raises:
        VirtueError: the index was never finished, or its rows do not say by which model they were encoded.

    Example:
        >>> index = VectorIndex.open("runs/index")  # doctest: +SKIP
        >>> index.search(embedder.encode("a red cup"), top=3)[0][0].name  # doctest: +SKIP
        'kitchen.jpg#2'
    """

    def __init__(self, uri: str, table: Any) -> None:
        self.uri = uri
        self.table = table
        schema = table.schema
        self.facts = EncodingFacts.from_schema(schema, uri)
        self.columns: list[str] = [name for name in schema.names if name != "vector"]
        self.settings = SearchSettings.from_metadata(schema.field("vector").metadata, uri)

    @classmethod
    def open(cls, uri: str | Path, storage_options: Mapping[str, str] | None = None) -> VectorIndex:
        """Open an index. Raises VirtueError where there is none.

        storage_options: of object storage, as LanceDB takes them.
        """
        uri = str(uri)
        if is_local(uri) and not (Path(uri) / f"{TABLE}.lance").is_dir():
            hint = suggest_path(uri) or ", expected a folder that `virtue-pl index` has written"
            raise VirtueError(f"there is no index {uri}{hint}")
        return cls(uri, open_table(uri, TABLE, dict(storage_options or {})))

    @classmethod
    def build(
        cls,
        source: str | Path,
        uri: str | Path,
        options: IndexOptions | None = None,
        storage_options: Mapping[str, str] | None = None,
        *,
        replace: bool = False,
        stage: Stage = lambda name, rows: None,
    ) -> VectorIndex:
        """Build an index of encoded rows, which are read in batches, and measure its recall.

        A local index is written beside its place and renamed. In object storage it counts as finished by its last
        transaction: one that broke off is refused by `open`.

        Args:
            source: what `virtue-pl encode` wrote, see `RowFiles.open`.
            uri: the new folder, or a URI of object storage.
            options: the kind of index; by default exact below 100,000 rows.
            storage_options: of object storage, as LanceDB takes them.
            replace: an index that is there already is replaced.
            stage: is called with each stage and the rows that it has done.

        Raises:
            VirtueError: rows that cannot be indexed, an index that is there, or LanceDB could not build it.
        """
        rows, uri, storage = RowFiles.open(str(source), storage_options), str(uri), dict(storage_options or {})
        with new_place(uri, replace) as place:
            table = write_rows(rows, place, storage, replace, stage)
            with lance_errors(uri):
                settings = finish(table, options or IndexOptions(), stage)
                table.update_field_metadata({"path": "vector", "metadata": settings.to_metadata()})
        return cls.open(uri, storage)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.count_rows())

    def check_query_model(self, fingerprint: str, dim: int, model: str = "the model") -> None:
        """Raise VirtueError where the model of the queries is not that of the rows.

        fingerprint, dim: `Embedder.fingerprint()` and the length of its embeddings.
        """
        if fingerprint != self.facts.fingerprint:
            from virtue_pl.types.fingerprints import library_versions

            versions = library_versions()
            other = [
                f"{name} {was}, here {versions.get(name)}"
                for name, was in self.facts.versions.items()
                if name in versions and str(versions[name]) != str(was)
            ]
            reason = f" (its rows are of {'; '.join(other)})" if other else ""
            raise VirtueError(
                f"{self.uri} was encoded by {self.facts.model} ({self.facts.fingerprint[:12]}), and {model} is another"
                f" model ({fingerprint[:12]}){reason}: name the index's with --model, or encode and index again"
            )
        if dim < self.facts.dim:
            raise VirtueError(f"{model} gives embeddings of {dim} numbers, {self.uri} has vectors of {self.facts.dim}")

    def problems(self) -> list[str]:
        """Return what is wrong with an approximate index, one sentence each; searches are complete, but slower.

        Raises VirtueError where it is gone, and a search would silently compare every row.
        """
        if self.settings.kind == "exact":
            return []
        with lance_errors(self.uri):
            names = [each.name for each in self.table.list_indices() if "vector" in each.columns]
            stats = self.table.index_stats(names[0]) if names else None
        if stats is None or not stats.num_indexed_rows:
            raise VirtueError(
                f"{self.uri} has lost its {self.settings.kind} index: build it again with --replace, or search every"
                " row with --exact"
            )
        if not stats.num_unindexed_rows:
            return []
        return [
            f"{stats.num_unindexed_rows:,} of {len(self):,} rows of {self.uri} are not in its {self.settings.kind}"
            " index and are compared one by one: build it again"
        ]

    def search(self, vectors: Any, top: int = 10, where: str | None = None, exact: bool = False) -> list[list[Hit]]:
        """Return the nearest rows of each vector, best first.

        Where a filter leaves an approximate search with fewer than `top`, that query is searched exactly.

        Args:
            vectors: embeddings [queries, dim], or one of them.
            top: the number of hits of each.
            where: a condition of SQL on the columns, such as "quality > 0.8 AND year = 2026".
            exact: compare every row.

        Raises:
            VirtueError: vectors of another length, a condition that cannot be read, or an index that has got lost.
        """
        queries = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.facts.dim:
            raise VirtueError(
                f"queries of {queries.shape[-1]} numbers, expected {self.facts.dim} as the vectors of {self.uri} have"
            )
        if top < 1:
            raise VirtueError(f"top is {top}, expected at least 1")
        exact = exact or self.settings.kind == "exact"
        if not exact:
            self.problems()
        found: list[list[Hit]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found += self.search_batch(queries[start : start + QUERIES_AT_ONCE], top, where, exact)
        return found

    def search_batch(self, queries: np.ndarray, top: int, where: str | None, exact: bool) -> list[list[Hit]]:
        """Return the hits of each query of one batch."""
        settings = None if exact else self.settings
        with self.where_errors(where):
            found = nearest(self.table, queries, top, settings, self.columns, where)
        short = [number for number, rows in enumerate(found) if len(rows) < top] if where and not exact else []
        if short:
            for number, rows in zip(short, self.search_batch(queries[short], top, where, True), strict=True):
                found[number] = rows
        return [[row if isinstance(row, Hit) else to_hit(rank, row) for rank, row in enumerate(rows, 1)] for rows in found]

    @contextmanager
    def where_errors(self, where: str | None) -> Iterator[None]:
        """Turn LanceDB's errors of a condition into one line that names the closest column."""
        try:
            with lance_errors(self.uri):
                yield
        except VirtueError as error:
            text = str(error)
            if where is None:
                raise
            if "No field named" in text:
                name = text.partition("No field named ")[2].partition(".")[0].strip("`\"'")
                closest = get_close_matches(name, self.columns, 1)
                hint = f"; did you mean {closest[0]!r}?" if closest else f"; there are {', '.join(self.columns)}"
                raise VirtueError(f"where: {self.uri} has no column {name!r}{hint}") from error
            raise VirtueError(f"where: {where!r} is no condition that can be read: {text}") from error


def to_hit(rank: int, row: Mapping[str, Any]) -> Hit:
    """Return a row of a result as a hit."""
    own = {name: row[name] for name in OWN_COLUMNS if name != "vector" and name in row}
    box = tuple(own.pop("box")) if own.get("box") is not None else None
    own.pop("box", None)
    columns = {name: value for name, value in row.items() if name not in OWN_COLUMNS and name[0] != "_"}
    columns.pop("query_index", None)
    return Hit(rank, 1 - row["_distance"], **own, box=box, columns=columns)  # type: ignore[arg-type]


def nearest(
    table: Any,
    queries: np.ndarray,
    top: int,
    settings: SearchSettings | None,
    columns: Sequence[str],
    where: str | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the rows nearest to each query, best first, with their `_distance`. settings: None searches exactly."""
    one = len(queries) == 1
    query = table.search(queries[0] if one else list(queries), vector_column_name="vector").distance_type("cosine")
    if settings is None:
        query = query.bypass_vector_index()
    else:
        query = query.refine_factor(settings.refine).minimum_nprobes(settings.probes).maximum_nprobes(0)
        query = query.ef(max(settings.ef, top)) if settings.kind == "hnsw_sq" else query
    if where is not None:
        query = query.where(where, prefilter=True)
    found: list[list[dict[str, Any]]] = [[] for _ in queries]
    for row in query.select([*columns, "_distance"]).limit(top).to_arrow().to_pylist():
        found[row.get("query_index", 0)].append(row)
    return [sorted(rows, key=lambda row: (row["_distance"], row.get("id", ""))) for rows in found]


def write_rows(rows: RowFiles, place: str, storage: dict[str, str], replace: bool, stage: Stage) -> Any:
    """Write rows as the table of an index, in one transaction; returns the table."""

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in rows.batches():
            yield batch
            done += len(batch)
            stage("writing", done)

    reader = pa.RecordBatchReader.from_batches(rows.schema, batches())
    database = import_lancedb().connect(place, storage_options=storage or None)
    with lance_errors(place):
        return database.create_table(
            TABLE, data=reader, schema=rows.schema, mode="overwrite" if replace else "create"
        )


def finish(table: Any, options: IndexOptions, stage: Stage) -> SearchSettings:
    """Build the approximate index of a table, where it has one, and widen its searches until the recall is reached."""
    count = int(table.count_rows())
    settings = SearchSettings.of_kind(options.resolve_kind(count), count)
    if settings.kind == "exact":
        return settings
    stage(f"building {settings.kind}", 0)
    table.create_index("vector", config=settings.config())
    stage("measuring recall", 0)
    queries = draw_queries(table, options.queries, options.seed)
    bounds = exact_bounds(table, queries, min(RECALL_AT, count))
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

    bounds: from `exact_bounds`, of the same number of nearest rows, `RECALL_AT` or all.
    """
    top = min(RECALL_AT, int(table.count_rows()))
    found = [
        rows
        for start in range(0, len(queries), QUERIES_AT_ONCE)
        for rows in nearest(table, queries[start : start + QUERIES_AT_ONCE], top, settings, ["id"])
    ]
    right = sum(
        1 - row["_distance"] >= bound - TIE for rows, bound in zip(found, bounds.tolist(), strict=True) for row in rows
    )
    return right / (top * len(queries))


@contextmanager
def new_place(uri: str, replace: bool) -> Iterator[str]:
    """Provide the place where an index is built: a folder beside `uri`, which takes its place when the block ends.

    In object storage it is `uri` itself. Raises VirtueError for an index that is there, unless it is to be replaced.
    """
    if not is_local(uri):
        if not replace and TABLE in import_lancedb().connect(uri).list_tables().tables:
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


@contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Turn LanceDB's errors within the block into one line; those of this package, and of reading rows, stay."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VirtueError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise VirtueError(f"{uri}: {first_line(error)}") from error
