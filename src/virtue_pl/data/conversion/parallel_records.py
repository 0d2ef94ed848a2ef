"""The records of one file, made by several processes and written in order, whatever the number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Protocol

from virtue_pl.data.conversion.grouped_parquet import Group
from virtue_pl.data.io.worker_pools import RESUME_ADVICE, worker_pool
from virtue_pl.types import DataError

PAIR_GROUPS_PER_TASK = 16
"""Groups of training rows given to a process at once; of evaluation rows it is one: a group may have
a thousand images.
"""


class RecordSink(Protocol):
    """A taker of a dataset's records: a writer of shards, a check-up, or a buffer.

    Example:
        >>> sink: RecordSink = BufferedRecords(rows=1)
        >>> sink.add([], "", [{"row": 0, "query": "a cat", "target": "an animal"}])
    """

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """Take one record, see `ShardWriter`; `paths` are those of its images, where there may be several."""

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Count rows that are left out."""


class RecordSource(Protocol):
    """A maker of records from groups of rows, see `SourceFile`.

    Example:
        >>> def write(source: RecordSource, groups: Sequence[Group], sink: RecordSink) -> None:
        ...     for group in groups:
        ...         source.write_record(group, sink, max_pixels=10_000)
    """

    @property
    def kind(self) -> str:
        """Return "pairs" or "rankings"."""

    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        """Write the record of one group of rows."""


class BufferedRecords:
    """A sink that keeps a group's records until they are written to another one, in the same order.

    Example:
        >>> records = BufferedRecords(rows=1)
        >>> records.add([], "", [{"row": 0, "query": "a cat", "target": "an animal"}])
        >>> copy = BufferedRecords(rows=1)
        >>> records.write_to(copy)
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._calls: list[tuple[Any, ...]] = []

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """Store the arguments of a record."""
        self._calls.append((images, image_path, rows, paths))

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Store the arguments of a skipped record."""
        self._calls.append((error.key, error.problem, rows))

    def write_to(self, writer: RecordSink) -> None:
        """Write the records to another sink."""
        for call in self._calls:
            if len(call) == 4:
                writer.add(*call)
            else:
                key, problem, rows = call
                writer.skip(DataError(key, problem), rows)


def records_in_order(
    file: RecordSource, groups: Iterator[Group], max_pixels: int, workers: int
) -> Iterator[BufferedRecords]:
    """Yield every group's records, made by `workers` processes that are at most a few groups ahead.

    Raises VirtueError where one is killed.
    """
    size = PAIR_GROUPS_PER_TASK if file.kind == "pairs" else 1
    waiting: deque[Future[list[BufferedRecords]]] = deque()
    with worker_pool(workers, "virtue_pl.data.conversion.source_file", RESUME_ADVICE) as pool:
        while some := list(islice(groups, size)):
            waiting.append(pool.submit(buffer_records, file, some, max_pixels))
            if len(waiting) > workers + 1:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def buffer_records(file: RecordSource, groups: Sequence[Group], max_pixels: int) -> list[BufferedRecords]:
    """Return each group's records; runs in a worker."""
    found = [BufferedRecords(len(group)) for group in groups]
    for group, buffered in zip(groups, found, strict=True):
        file.write_record(group, buffered, max_pixels)
    return found
