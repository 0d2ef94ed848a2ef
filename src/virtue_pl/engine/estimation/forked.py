"""Functions that run beside each other in this process and a forked one."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

Functions = Sequence[Callable[[], Any]]


def can_fork() -> bool:
    """Return whether a second process would help: on Linux, where this one may run on several cores."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


def run_beside(here: Functions, there: Functions) -> tuple[list[Any], list[Any]]:
    """Return what the functions return, those of `there` from a forked process.

    What fails there is run again here, so that its error is that of this process. A function of `there` uses one thread
    and no GPU, changes nothing that is needed here, and returns what can be pickled.

    Example:
        >>> run_beside([lambda: 1], [lambda: 2, lambda: 3])
        ([1], [2, 3])
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        run_in_child(there, read_end, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        try:
            found, data = [function() for function in here], stream.read()
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
    return found, pickle.loads(data) if status == 0 else [function() for function in there]


def run_in_turn(first: Functions, second: Functions) -> tuple[list[Any], list[Any]]:
    """Return what the functions return, from this process alone.

    Example:
        >>> run_in_turn([lambda: 1], [lambda: 2, lambda: 3])
        ([1], [2, 3])
    """
    return [function() for function in first], [function() for function in second]


def run_in_child(functions: Functions, read_end: int, write_end: int) -> None:
    """Write what the functions return to a pipe, and end the process, without what it does where it ends by itself."""
    code = 1
    try:
        os.close(read_end)
        torch.set_num_threads(1)  # another number would wait for threads that this process does not have
        with os.fdopen(write_end, "wb") as stream:
            pickle.dump([function() for function in functions], stream)
        code = 0
    finally:
        os._exit(code)
