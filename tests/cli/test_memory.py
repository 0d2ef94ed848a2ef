from __future__ import annotations

import subprocess
import sys

import pytest

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
    kept, count = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True).stdout.split()
    return kept, int(count)


def test_tensors_take_the_pages_of_those_that_were_freed() -> None:
    kept, count = faults("keep")
    if kept == "False":
        pytest.skip("this system's C library is not glibc")
    assert 10 * count < faults("leave")[1]
