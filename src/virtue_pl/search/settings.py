"""Options of an index and of its searches: exact, or approximate by one of LanceDB's kinds with a measured recall."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from virtue_pl.types import VirtueError

KINDS = ("auto", "exact", "ivf_sq", "ivf_rq", "ivf_pq", "hnsw_sq")
"""Kinds of an index; "auto" is exact below `IndexOptions.exact_below` rows and IVF_SQ from there on.

A search holds what it has read of an index in memory: of a row and dimension a byte for IVF_SQ, a bit for IVF_RQ.
"""

TYPES = {"ivf_sq": "IvfSq", "ivf_rq": "IvfRq", "ivf_pq": "IvfPq", "hnsw_sq": "HnswSq"}
"""LanceDB's class of each kind's configuration."""

STATE = b"virtue_pl_index"
"""Key of the vector column's metadata with the state of a finished index, as JSON."""

TRAINED_ROWS = 64
"""Rows drawn for each partition of IVF_SQ, by which its centre is found; they are held in memory together."""

MOST_REFINED, MOST_CANDIDATES = 80, 1600
"""Bounds of `SearchSettings.refine` and `ef`, up to which searches are widened for their recall."""


@dataclass(frozen=True)
class IndexOptions:
    """Options of an index that is built.

    kind: one of `KINDS`. exact_below: rows below which "auto" builds none, and every row is compared. queries: rows
    drawn at random as queries, by which the recall is measured. recall: the recall@10 up to which searches look at more
    of the index. seed: of the draw.

    Example:
        >>> IndexOptions().resolve_kind(200_000), IndexOptions().resolve_kind(2_000)
        ('ivf_sq', 'exact')
    """

    kind: str = "auto"
    exact_below: int = 20_000
    queries: int = 100
    recall: float = 0.97
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise VirtueError(f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.exact_below < 0 or self.queries < 1 or not 0 <= self.recall <= 1:
            raise VirtueError(
                f"exact_below is {self.exact_below}, queries {self.queries}, recall {self.recall:g}, expected at least"
                " 0, at least 1, and a share"
            )

    def resolve_kind(self, rows: int) -> str:
        """Return the kind of an index of so many rows."""
        if self.kind != "auto":
            return self.kind
        return "exact" if rows < self.exact_below else "ivf_sq"


@dataclass(frozen=True)
class SearchSettings:
    """State of a finished index, and how searches go through it.

    kind: one of `KINDS` but "auto". rows: those that were indexed. partitions: of the index. probes: partitions that a
    search looks at. ef: candidates that HNSW keeps. refine: times as many candidates as hits, whose stored vectors are
    compared. recall: recall@10 against exact search, of `queries` rows drawn from the index, none counted among its own
    nearest rows; None where all is exact.

    Example:
        >>> SearchSettings("ivf_sq", 200_000, 447).wider().probes
        40
    """

    kind: str
    rows: int
    partitions: int = 0
    probes: int = 20
    ef: int = 100
    refine: int = 10
    recall: float | None = None
    queries: int = 0

    @classmethod
    def of_kind(cls, kind: str, rows: int) -> SearchSettings:
        """Return the settings that a search begins with."""
        if kind == "hnsw_sq":
            return cls(kind, rows, 1, probes=1, ef=100, refine=2)
        partitions = 0 if kind == "exact" else max(1, round(math.sqrt(rows)))
        return cls(kind, rows, partitions, refine=2 if kind == "ivf_sq" else 10)

    def config(self) -> Any:
        """Return LanceDB's configuration of the index. Raises VirtueError for an exact one."""
        import lancedb.index

        if self.kind not in TYPES:
            raise VirtueError(f"an index of kind {self.kind!r} has no configuration")
        options: dict[str, Any] = {"distance_type": "cosine", "num_partitions": self.partitions}
        options |= {"m": 20} if self.kind == "hnsw_sq" else {}
        options |= {"num_bits": 1} if self.kind == "ivf_rq" else {}
        options |= {"sample_rate": TRAINED_ROWS} if self.kind == "ivf_sq" else {}
        return getattr(lancedb.index, TYPES[self.kind])(**options)

    def is_widest(self) -> bool:
        """Return whether searches look at as much of the index as they ever do."""
        return self == self.wider()

    def wider(self) -> SearchSettings:
        """Return settings that look at twice as much of the index, and at twice as many stored vectors."""
        refine = min(2 * self.refine, MOST_REFINED)
        if self.kind == "hnsw_sq":
            return self.changed(ef=min(2 * self.ef, MOST_CANDIDATES), refine=refine)
        return self.changed(probes=min(2 * self.probes, max(self.partitions, self.probes)), refine=refine)

    def changed(self, **values: Any) -> SearchSettings:
        """Return settings with other values."""
        return SearchSettings(**{**asdict(self), **values})

    def to_metadata(self) -> dict[str, str]:
        """Return the state as metadata of the vector column."""
        return {STATE.decode(): json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, source: str) -> SearchSettings:
        """Return the state of an index. Raises VirtueError, which names `source`, where it was never finished."""
        try:
            return cls(**json.loads((metadata or {})[STATE]))
        except (KeyError, TypeError, ValueError) as error:
            raise VirtueError(
                f"{source}: the index was never finished: build it again with `virtue-pl index ROWS --out {source}"
                " --replace`"
            ) from error
