"""Settings of glibc's malloc and of Python's garbage collector, for processes that load large libraries."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import platform
import sys

M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = 1, -1, -3, -8
"""Options of `mallopt`, from glibc's malloc.h."""
NEVER = 2**31 - 1
TUNABLES = "GLIBC_TUNABLES"
NO_THREAD_CACHES = "glibc.malloc.tcache_count=0"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensor; does nothing elsewhere. Returns whether it was done.

    By default every tensor of more than a few megabytes is mapped anew and its pages are cleared, step after step,
    which takes half of the time of a frozen network on a CPU. One arena serves all threads, so that the backward pass
    reuses the memory that the forward pass freed. Freed memory is joined with the free memory beside it at once,
    however small (see `join_freed_memory`).
    """
    if not glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value) == 1
        for option, value in ((M_MMAP_THRESHOLD, NEVER), (M_TRIM_THRESHOLD, NEVER), (M_ARENA_MAX, 1), (M_MXFAST, 0))
    )


def join_freed_memory() -> None:
    """Start this command anew, once, with glibc's caches of small pieces off.

    Only the environment of a new process can set that.

    torch asks for aligned memory, and glibc cuts a few bytes from each tensor's two ends for it. Pieces in a cache do
    not join the space of the freed tensor between them, so that the next tensor of that size does not fit there: the
    heap of a training step grew to three times the memory in use. Nothing is done where glibc is not the allocator, or
    its settings were chosen already.
    """
    if glibc() and TUNABLES not in os.environ and not os.environ.get("LD_PRELOAD"):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: NO_THREAD_CACHES})


def leave_objects_at_exit() -> None:
    """Have Python not look through all objects for circles of them when it ends; the system takes their memory anyway.

    With torch and transformers loaded that takes a second.
    """
    atexit.register(gc.freeze)


def glibc() -> bool:
    """Return whether the C library is glibc."""
    return platform.libc_ver()[0] == "glibc"
