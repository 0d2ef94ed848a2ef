"""Rows of many requests in batches of one model: a bounded queue, and the one thread that owns the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from virtue_pl.apps.server.options import Limits
from virtue_pl.types import EmbeddingInput

Task = Literal["embed", "masks"]

WAITING_SHARE = 0.1
"""Longest wait of a batch for rows that are on their way, as a share of the time that the last batch took."""


class QueueFull(Exception):
    """The queue has no room for the rows of a request.

    Example:
        >>> raise QueueFull("2,048 rows are queued")
        Traceback (most recent call last):
        virtue_pl.apps.server.batching.QueueFull: 2,048 rows are queued
    """


class QueueClosed(Exception):
    """The queue takes nothing any more, since the server stops.

    Example:
        >>> raise QueueClosed("the server stops")
        Traceback (most recent call last):
        virtue_pl.apps.server.batching.QueueClosed: the server stops
    """


@dataclass(eq=False)
class Job:
    """Rows of one request, which are computed together.

    Example:
        >>> Job("embed", [EmbeddingInput("a cat")], tokens=2).future.done()
        False
    """

    task: Task
    items: Sequence[EmbeddingInput]
    tokens: float
    future: Future[Any] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)


class BatchQueue:
    """A queue of rows whose thread calls the model on what has come, as many at a time as a batch's limits allow.

    Room is reserved before images are decoded (`reserve`), so that what is accepted is bounded before it takes memory;
    `submit` queues the rows, and `release` gives the room back once they are answered.

    Args:
        compute: called in the one thread with a task and the rows of a batch; returns one result a row.
        limits: see `Limits`.
        observe: called with the task, the rows and the seconds of each batch.

    Example:
        >>> queue = BatchQueue(lambda task, items: [item.text.upper() for item in items], Limits())
        >>> queue.reserve(1)
        >>> queue.submit(Job("embed", [EmbeddingInput("a cat")], tokens=2)).result()
        ['A CAT']
        >>> queue.release(1)
        >>> queue.close()
    """

    def __init__(
        self,
        compute: Callable[[Task, Sequence[EmbeddingInput]], Sequence[Any]],
        limits: Limits,
        observe: Callable[[Task, int, float], None] = lambda task, rows, seconds: None,
    ) -> None:
        self.compute = compute
        self.limits = limits
        self.observe = observe
        self.reserved_rows = 0
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._expected_rows = 0
        self._last_seconds = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="virtue-batches", daemon=True)
        self._thread.start()

    def reserve(self, rows: int) -> None:
        """Take room for so many rows. Raises QueueFull where there is none, QueueClosed where the server stops."""
        with self._changed:
            if self._closed:
                raise QueueClosed("the server stops")
            if self.reserved_rows + rows > self.limits.queued_rows:
                raise QueueFull(f"{self.reserved_rows:,} rows are queued, of at most {self.limits.queued_rows:,}")
            self.reserved_rows += rows

    def release(self, rows: int) -> None:
        """Give the room of so many rows back."""
        with self._changed:
            self.reserved_rows -= rows
            self._changed.notify_all()

    def submit(self, job: Job) -> Future[Any]:
        """Queue rows for which there is room; returns the future of their results, one a row."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, compute everything that was accepted, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def refuse(self) -> None:
        """Take nothing more; what was accepted is still computed."""
        with self._changed:
            self._closed = True

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            wanted = self._compute(batch)
            if wanted:
                self._last_seconds = time.monotonic() - started
                self.observe(wanted[0].task, sum(len(job.items) for job in wanted), self._last_seconds)

    def _next_batch(self) -> list[Job]:
        """Return the jobs of the next batch, the oldest first; none where all is done and the queue is closed.

        Jobs of another task than the first stay where they are.
        """
        with self._changed:
            while not self._jobs:
                if self._closed and not self.reserved_rows:
                    return []
                self._changed.wait(None if not self._closed else 0.05)
            self._wait_for_more()
            batch: list[Job] = []
            rows, tokens = 0, 0.0
            for job in list(self._jobs):
                if job.task != (batch[0] if batch else job).task:
                    continue
                rows, tokens = rows + len(job.items), tokens + job.tokens
                if batch and (rows > self.limits.batch_rows or tokens > self.limits.batch_tokens):
                    break
                batch.append(job)
                self._jobs.remove(job)
            return batch

    def _wait_for_more(self) -> None:
        """Wait for rows that are on their way, until a batch is full or the time for it is over.

        So many are on their way as were accepted when the last batch was done, whose clients ask again; a lone client
        does not wait.
        """
        deadline = time.monotonic() + max(self.limits.wait_seconds, WAITING_SHARE * self._last_seconds)
        while sum(len(job.items) for job in self._jobs) < min(
            self.limits.batch_rows, max(self.reserved_rows, self._expected_rows)
        ):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._closed or not self.limits.wait_seconds:
                return
            self._changed.wait(remaining)

    def _compute(self, batch: list[Job]) -> list[Job]:
        """Set the result of each job that is still wanted, and return them.

        Where a batch fails, each job is computed alone.
        """
        with self._changed:
            self._expected_rows = self.reserved_rows
        wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if len(wanted) > 1:
            with suppress(Exception):
                found = self.compute(wanted[0].task, [item for job in wanted for item in job.items])
                for job in wanted:
                    job.future.set_result(found[: len(job.items)])
                    found = found[len(job.items) :]
                return wanted
        for job in wanted:
            try:
                job.future.set_result(self.compute(job.task, job.items))
            except Exception as error:
                job.future.set_exception(error)
        return wanted
