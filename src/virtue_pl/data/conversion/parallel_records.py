"""One file's records made by several processes, and given back in their order: what is written does not depend on how
many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Protocol

from virtue_pl.data.conversion.grouped_parquet import Group
from virtue_pl.data.io.worker_pools import GO_ON, worker_pool
from virtue_pl.types import DataError

PAIRS_AT_A_TIME = 16
"""Groups of training rows that a process is given at once. Of evaluation rows it is one: a group may show a thousand
images.
"""


class RecordSink(Protocol):
    """What takes a dataset's records: a writer of shards, or whoever only looks at them."""

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """One record, see `ShardWriter`; `paths` are those of its images, where there may be several."""

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Rows that are left out."""


class RecordSource(Protocol):
    """What makes records of groups of rows."""

    @property
    def kind(self) -> str: ...

    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None: ...


class HeldRecords:
    """A sink that holds a group's records until they are given to another one, in the same order."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._added: list[tuple[Any, ...]] = []

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        self._added.append((images, image_path, rows, paths))

    def skip(self, error: DataError, rows: int = 1) -> None:
        self._added.append((error.key, error.problem, rows))

    def give(self, writer: RecordSink) -> None:
        for held in self._added:
            if len(held) == 4:
                writer.add(*held)
            else:
                key, problem, rows = held
                writer.skip(DataError(key, problem), rows)


def records_in_order(
    file: RecordSource, groups: Iterator[Group], max_pixels: int, workers: int
) -> Iterator[HeldRecords]:
    """Every group's records, made by `workers` processes that are at most a few groups ahead. Raises VirtueError where
    one is killed.
    """
    size = PAIRS_AT_A_TIME if file.kind == "pairs" else 1
    waiting: deque[Future[list[HeldRecords]]] = deque()
    with worker_pool(workers, "virtue_pl.data.conversion.source_file", GO_ON) as pool:
        while some := list(islice(groups, size)):
            waiting.append(pool.submit(held_records, file, some, max_pixels))
            if len(waiting) > workers + 1:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def held_records(file: RecordSource, groups: Sequence[Group], max_pixels: int) -> list[HeldRecords]:
    """In a worker: each group's records."""
    found = [HeldRecords(len(group)) for group in groups]
    for group, held in zip(groups, found, strict=True):
        file.write_record(group, held, max_pixels)
    return found
