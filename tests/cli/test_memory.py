from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from virtue_pl.cli import memory

SCRIPT = """
import resource, sys
from virtue_pl.cli.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import torch
torch.set_num_threads(1)
def steps():
    for _ in range(10):
        first = torch.ones(16, 1024, 1024)
        second = first * 2
        del first
        second = second + 1
for _ in range(3):
    steps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> tuple[str, int]:
    """Whether memory is kept, and how many pages ten steps over tensors of 64 megabytes made the system map."""
    kept, count = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    ).stdout.split()
    return kept, int(count)


def test_tensors_take_the_pages_of_those_that_were_freed() -> None:
    kept, count = faults("keep")
    if kept == "False":
        pytest.skip("this system's C library is not glibc")
    assert 10 * count < faults("leave")[1]


HEAP = """
import ctypes
from virtue_pl.cli.memory import keep_freed_memory
keep_freed_memory()
class Found(ctypes.Structure):
    names = ("arena", "free_chunks", "a", "b", "mapped", "c", "d", "in_use", "free", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in names]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Found
import torch
torch.set_num_threads(1)
layers = [torch.nn.TransformerEncoderLayer(256, 4, 704, dropout=0.1, batch_first=True) for _ in range(8)]
sizes = []
for _ in range(4):
    x = torch.randn(2, 436, 256)
    for layer in layers:
        x = layer(x)
    with torch.autograd.set_multithreading_enabled(False):
        x.sum().backward()
    sizes.append(library.mallinfo2().arena)
print(sizes[-1] - sizes[0])
"""


def heap(**settings: str) -> int:
    """Bytes that the heap of a process grows by in steps that need no more than the first one did."""
    environment = {name: value for name, value in os.environ.items() if name != memory.TUNABLES} | settings
    return int(
        subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True, env=environment).stdout
    )


def test_joined_memory_is_used_again() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this system's C library is not glibc")
    # How the heap breaks up differs from process to process (addresses are drawn), so the best of three is compared.
    joined = min(heap(GLIBC_TUNABLES=memory.NO_THREAD_CACHES) for _ in range(3))
    assert 2 * joined < min(heap() for _ in range(3))


def test_a_command_starts_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(memory.os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(memory, "glibc", lambda: True)
    monkeypatch.setattr(memory.os, "environ", {"HOME": "here"})
    memory.join_freed_memory()
    assert started == [
        (sys.executable, sys.orig_argv, {"HOME": "here", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"})
    ]
    for chosen in ({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"LD_PRELOAD": "libjemalloc.so"}):
        monkeypatch.setattr(memory.os, "environ", chosen)
        memory.join_freed_memory()
    assert len(started) == 1


def test_objects_are_left_at_exit() -> None:
    script = """
import atexit, gc
from virtue_pl.cli.memory import leave_objects_at_exit
atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000))
leave_objects_at_exit()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
