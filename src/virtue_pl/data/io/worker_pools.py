"""A pool of worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from virtue_pl.types import VirtueError

FORKSERVER = multiprocessing.get_context("forkserver")
"""Workers begin without this process's threads and memory."""
RESUME_ADVICE = "; the same command goes on where it stopped"
"""Advice for a command that can be resumed."""


@contextmanager
def worker_pool(workers: int, preload: str, advice: str = "", **options: Any) -> Iterator[ProcessPoolExecutor]:
    """Provide a pool of processes; what is left undone when the block ends, as by an error, is cancelled.

    Raises VirtueError where a worker is killed while its result is waited for.

    Args:
        workers: number of processes.
        preload: a module to import once, not in every worker.
        advice: what else to do where a worker is killed.
        options: of `ProcessPoolExecutor`.
    """
    FORKSERVER.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(workers, FORKSERVER, **options)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise VirtueError(f"a worker was killed, perhaps for its memory: give fewer --workers{advice}") from error
    finally:
        pool.shutdown(cancel_futures=True)  # not `with`, whose own shutdown would take the cancelling back
