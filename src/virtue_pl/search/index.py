"""The index of encoded rows: a LanceDB table in a folder or in object storage, searched exactly or approximately."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from virtue_pl.search.building import QUERIES_AT_ONCE, IndexBuilder, Stage, build_ann, is_local, new_location
from virtue_pl.search.hits import Hit, nearest, to_hit
from virtue_pl.search.row_files import TABLE, RowFiles, lance_errors, open_table
from virtue_pl.search.rows import EncodingFacts
from virtue_pl.search.settings import IndexOptions, SearchSettings
from virtue_pl.types import VirtueError
from virtue_pl.types.paths import suggest_path


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
        self._checked = -1
        """Version of the table that `problems` has last found an index in."""

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
        builder: IndexBuilder | None = None,
    ) -> VectorIndex:
        """Build an index of encoded rows, which are read in batches, and measure its recall.

        A local index is written beside its place and renamed. In object storage it counts as finished by its last
        transaction: one that broke off is refused by `open`.

        Args:
            source: what `virtue-pl encode` wrote, see `RowFiles.open`.
            uri: the new folder, or a URI of object storage.
            options: the kind of index; by default exact below 20,000 rows.
            storage_options: of object storage, as LanceDB takes them.
            replace: an index that is there already is replaced.
            stage: is called with each stage and the rows that it has done.
            builder: where it is built; by default in this process.

        Raises:
            VirtueError: rows that cannot be indexed, an index that is there, or LanceDB could not build it.
        """
        rows, uri, storage = RowFiles.open(str(source), storage_options), str(uri), dict(storage_options or {})
        builder = builder or IndexBuilder()
        with builder.session(), new_location(uri, replace, storage) as location:
            table = builder.write_rows(rows, location, storage, replace, stage)
            create_index = partial(builder.create_index, table, location, storage)
            with lance_errors(uri):
                settings = build_ann(table, options or IndexOptions(), stage, create_index)
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
        """Return what is wrong with an approximate index, one sentence each.

        `search` warns of it where this was not called before. Raises VirtueError where it is gone, and a search would
        silently compare every row.
        """
        if self.settings.kind == "exact":
            return []
        version = self.table.version
        with lance_errors(self.uri):
            found = [each for each in self.table.list_indices() if "vector" in each.columns]
            stats = self.table.index_stats(found[0].name) if found else None
        if stats is None or not stats.num_indexed_rows:
            raise VirtueError(
                f"{self.uri} has lost its {self.settings.kind} index: build it again with --replace, or search every"
                " row with --exact"
            )
        is_own = stats.index_type.lower().endswith(self.settings.kind) and stats.distance_type == "cosine"
        if not is_own:
            raise VirtueError(
                f"{self.uri} has an index of another kind, {stats.index_type} by {stats.distance_type}, expected its"
                f" own {self.settings.kind} by cosine: build it again with --replace, or search every row with --exact"
            )
        problems = []
        if stats.num_unindexed_rows:
            problems.append(
                f"{stats.num_unindexed_rows:,} of {len(self):,} rows of {self.uri} are not in its {self.settings.kind}"
                " index and are compared one by one: build it again"
            )
        self._checked = version
        return problems

    def search(self, vectors: Any, top: int = 10, where: str | None = None, exact: bool = False) -> list[list[Hit]]:
        """Return the nearest rows of each vector, best first.

        Where an approximate search finds fewer than `top` rows for a query, by a filter or because it looks at too few,
        that query is searched exactly.

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
        if not exact and self._checked != self.table.version:
            for problem in self.problems():
                warnings.warn(problem, stacklevel=2)
        found: list[list[Hit]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found += self.search_batch(queries[start : start + QUERIES_AT_ONCE], top, where, exact)
        return found

    def search_batch(self, queries: np.ndarray, top: int, where: str | None, exact: bool) -> list[list[Hit]]:
        """Return the hits of each query of one batch."""
        settings = None if exact else self.settings
        with self.search_errors(where, exact):
            found = nearest(self.table, queries, top, settings, self.columns, where)
        hits = [[to_hit(rank, row) for rank, row in enumerate(rows, 1)] for rows in found]
        short = [] if exact else [number for number, rows in enumerate(hits) if len(rows) < top]
        if short and where is None:
            count = len(self)
            short = [number for number in short if len(hits[number]) < count]
        if short:
            for number, rows in zip(short, self.search_batch(queries[short], top, where, True), strict=True):
                hits[number] = rows
        return hits

    @contextmanager
    def search_errors(self, where: str | None, exact: bool) -> Iterator[None]:
        """Turn LanceDB's errors into one line: of a condition it names the closest column, of a file what to do."""
        try:
            with lance_errors(self.uri):
                yield
        except VirtueError as error:
            text = str(error)
            if "No field named" in text:
                name = text.partition("No field named ")[2].partition(".")[0].strip("`\"'")
                closest = get_close_matches(name, self.columns, 1)
                hint = f"; did you mean {closest[0]!r}?" if closest else f"; there are {', '.join(self.columns)}"
                raise VirtueError(f"where: {self.uri} has no column {name!r}{hint}") from error
            if where is not None and not is_unreadable(text):
                raise VirtueError(f"where: {where!r} is no condition that can be read: {text}") from error
            instead = "" if exact else ", or search every row with --exact"
            raise VirtueError(f"{text}; is it damaged? Build it again with --replace{instead}") from error


def is_unreadable(text: str) -> bool:
    """Return whether LanceDB's error is of a file that is missing or damaged, not of what it was asked."""
    return any(sign in text for sign in ("Not found", "LanceError(IO)", "Object at location"))
