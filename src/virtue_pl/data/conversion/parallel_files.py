"""Several files converted at a time, each in a process of its own, with one progress bar for all."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from virtue_pl.data.io.worker_pools import FORKSERVER, RESUME_ADVICE, worker_pool

_done: Any = None
"""In a worker: the queue for the numbers of rows that it has done."""


def convert_in_processes(
    convert: Callable[..., Any], files: Sequence[Any], progress: Any, workers: int
) -> dict[str, Any]:
    """Return `convert(file, progress=...)` of every file by the file's name.

    The first error stops the rest; what has begun can be resumed.
    """
    done = FORKSERVER.Queue()
    with (
        progress(f"{len(files)} files", rows := sum(file.num_rows() for file in files)) as advance,
        worker_pool(
            workers, "virtue_pl.data.conversion.source_file", RESUME_ADVICE, initializer=_remember, initargs=(done,)
        ) as pool,
    ):
        futures = {file.name: pool.submit(convert, file, progress=_report_rows) for file in files}
        reported = _follow(list(futures.values()), done, advance)
        found = {name: future.result() for name, future in futures.items()}
        advance(rows - reported)  # what a queue has not given yet when its writers are done
        return found


def _follow(futures: Sequence[Future[Any]], done: Any, advance: Callable[[int], None]) -> int:
    """Report rows as they are done, until all files are or one has failed; return how many were reported."""
    reported = 0
    while True:
        finished, left = wait(futures, timeout=0.2)
        reported += _drain(done, advance)
        if not left or any(future.exception() for future in finished):
            return reported


def _drain(done: Any, advance: Callable[[int], None]) -> int:
    """Report the rows in the queue; return how many they are."""
    reported = 0
    while True:
        try:
            rows = done.get_nowait()
        except queue.Empty:
            return reported
        advance(rows)
        reported += rows


def _remember(done: Any) -> None:
    """Keep the queue in a worker."""
    global _done
    _done = done


@contextmanager
def _report_rows(name: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Provide a worker's progress: rows go to the process that shows them."""
    yield _done.put
