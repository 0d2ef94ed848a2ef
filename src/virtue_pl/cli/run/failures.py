"""A rank that fails ends the others soon, and each of them says why on its last line.

Ranks wait for each other in collectives, some of them for half an hour. The one that fails writes its reason into the
store by which they found each other, and closes its connections. The others read it there: where a connection breaks,
or in a thread that looks there now and then.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from virtue_pl.types import VirtueError

REASON, HEARD = "failure/reason", "failure/heard"
"""Keys of the store: the first rank that failed, and why; a rank that knows."""
LOOKS, GRACE, WAIT = 1.0, 20.0, 10.0
"""Seconds between a thread's looks into the store, that it leaves a rank to end by itself, and that the rank that
failed waits for the others to hear of it.
"""
LOST = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl")
"""Words in the errors of a collective that another rank has left."""


@contextmanager
def failures_told(program: str) -> Iterator[None]:
    """Tell the other ranks why this one fails, and raise VirtueError, which says it, where another one did.

    program: opens the line of a rank that is ended by the thread.
    """
    watch = FailureWatch(program)
    watch.start()
    try:
        yield
    except Exception as error:
        told = watch.tell(error)
        if told is None:
            raise
        raise VirtueError(told) from error
    finally:
        watch.end()


class FailureWatch(threading.Thread):
    """The thread that looks whether another rank has failed, from when the ranks have found each other.

    Example:
        >>> watch = FailureWatch("virtue-pl")
        >>> watch.tell(ValueError("a file is missing")) is None  # this process is alone
        True
    """

    def __init__(self, program: str) -> None:
        super().__init__(daemon=True, name="failure-watch")
        self.program = program
        self.ended = threading.Event()
        self.reading = threading.Lock()
        self.told: str | None = None

    def run(self) -> None:
        """Look into the store until this rank ends; end it where another one has failed and it does not do so."""
        while not self.ended.wait(LOOKS):
            if number_of_ranks() == 1:
                continue
            if self.read() is None:
                continue
            if not self.ended.wait(GRACE):
                print(f"{self.program}: {self.told}", file=sys.stderr, flush=True)
                os._exit(1)
            return

    def read(self) -> str | None:
        """Return why another rank has failed; None as long as none has. It is read once: that rank does not wait."""
        with self.reading:
            if self.told is None:
                self.told = read_reason()
            return self.told

    def wait_for_reason(self, seconds: float) -> str | None:
        """Return why another rank has failed, if it says so within `seconds`."""
        until = time.monotonic() + seconds
        while self.read() is None and time.monotonic() < until:
            time.sleep(0.1)
        return self.told

    def tell(self, error: Exception) -> str | None:
        """Return what is to be said in place of this rank's error: why another rank failed before.

        None where this one is the first, whose error is then told to all others.
        """
        if number_of_ranks() == 1:
            return None
        self.ended.set()
        lost = is_lost_connection(error)
        told = self.wait_for_reason(WAIT / 2 if lost else 0)
        if told is None and lost:
            told = f"another rank has gone without a word (killed, or out of memory?): {first_line(error)}"
        if told is None:
            publish(error)
        return told

    def end(self) -> None:
        """Look no more."""
        self.ended.set()


def number_of_ranks() -> int:
    """Return the number of ranks that have found each other; torch is not imported for that."""
    dist: Any = sys.modules.get("torch.distributed")
    return dist.get_world_size() if dist is not None and dist.is_available() and dist.is_initialized() else 1


def store() -> Any:
    """Return the store by which the ranks found each other."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def read_reason() -> str | None:
    """Return which rank has failed first and why; None as long as none has."""
    import torch.distributed as dist

    try:
        found, rank = store(), dist.get_rank()
        if not found.check([REASON]):
            return None
        told: str = found.get(REASON).decode()
        found.set(f"{HEARD}/{rank}", "1")
    except (RuntimeError, ValueError):  # the process that holds the store has gone, or the connections are closed
        return "rank 0, by which the others are connected, has gone without a word (killed, or out of memory?)"
    return None if told.startswith(f"rank {rank} ") else told


def publish(error: Exception) -> None:
    """Write this rank's error into the store, close its connections, and wait until all others know."""
    import torch.distributed as dist

    rank, ranks, found = dist.get_rank(), dist.get_world_size(), store()
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun's last lines have it, too
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    try:
        mine = f"rank {rank} failed: {first_line(error)}"
        if found.compare_set(REASON, "", mine).decode() != mine:  # another one was faster, and waits for this one
            found.set(f"{HEARD}/{rank}", "1")
            return
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()
        others = [f"{HEARD}/{other}" for other in range(ranks) if other != rank]
        until = time.monotonic() + WAIT
        while not found.check(others) and time.monotonic() < until:
            time.sleep(0.1)
    except RuntimeError:
        return  # nobody is there to be told


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is that of a collective which another rank has left."""
    import torch.distributed as dist

    cause: BaseException | None = None if isinstance(error, VirtueError) else error
    while cause is not None:
        if isinstance(cause, dist.DistError):
            return True
        if type(cause) is RuntimeError and any(word in str(cause).lower() for word in LOST):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its class where it is a defect."""
    text = (str(error).strip().splitlines() or [""])[0][:500]
    return text if isinstance(error, VirtueError) and text else f"{type(error).__name__}: {text}"
