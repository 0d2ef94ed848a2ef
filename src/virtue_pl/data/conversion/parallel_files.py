"""Several files converted at a time, each in a process of its own, with one bar for all."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from virtue_pl.data.io.worker_pools import FORKSERVER, GO_ON, worker_pool

_done: Any = None
"""In a worker: where it says how many rows it has done."""


def in_processes(convert: Callable[..., Any], files: Sequence[Any], progress: Any, workers: int) -> dict[str, Any]:
    """`convert(file, progress=...)` of every file by the file's name; the first mistake stops the rest, what is begun
    can be gone on with.
    """
    done = FORKSERVER.Queue()
    with (
        progress(f"{len(files)} files", rows := sum(file.num_rows() for file in files)) as advance,
        worker_pool(
            workers, "virtue_pl.data.conversion.source_file", GO_ON, initializer=_remember, initargs=(done,)
        ) as pool,
    ):
        futures = {file.name: pool.submit(convert, file, progress=_tell) for file in files}
        told = _follow(list(futures.values()), done, advance)
        found = {name: future.result() for name, future in futures.items()}
        advance(rows - told)  # what a queue has not given yet when its writers are done
        return found


def _follow(futures: Sequence[Future[Any]], done: Any, advance: Callable[[int], None]) -> int:
    """Reports rows as they are done, until all files are or one has failed; how many it reported."""
    told = 0
    while True:
        finished, left = wait(futures, timeout=0.2)
        told += _drain(done, advance)
        if not left or any(future.exception() for future in finished):
            return told


def _drain(done: Any, advance: Callable[[int], None]) -> int:
    told = 0
    while True:
        try:
            rows = done.get_nowait()
        except queue.Empty:
            return told
        advance(rows)
        told += rows


def _remember(done: Any) -> None:
    global _done
    _done = done


@contextmanager
def _tell(name: str, rows: int) -> Iterator[Callable[[int], None]]:
    """A worker's progress: rows go to the process that shows them."""
    yield _done.put
