"""The tests of a GPU are found, and their code runs on a CPU: two of them here, `VIRTUE_GPU_DEVICE=cpu` runs all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures.pages import ROOT
from fixtures.rank_processes import started


def run_tests(rank: int, chosen: str) -> int:
    """Run tests of a GPU in a process that was forked from this one, in which what they import is there."""
    os.chdir(ROOT)
    os.environ["VIRTUE_GPU_DEVICE"] = "cpu"
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]
    return int(pytest.main(["-q", "-m", "gpu", "tests/gpu", "-k", chosen, *options]))


def test_two_tests_of_a_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    with started(tmp_path, run_tests, "embeddings_are or (never_waits and bfloat16)", number=1) as ranks:
        assert ranks.wait(300) == [0], ranks.printed(0)
    assert "2 passed, 6 deselected" in ranks.printed(0)
