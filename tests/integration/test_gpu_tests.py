"""The tests of a GPU are found, and their code runs on a CPU: two of them here, `VIRTUE_GPU_DEVICE=cpu` runs all."""

from __future__ import annotations

import os
import subprocess
import sys

from fixtures.pages import ROOT


def test_two_tests_of_a_gpu_run_on_a_cpu() -> None:
    chosen = ("-k", "embeddings_are or (never_waits and bfloat16)")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", *chosen, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "VIRTUE_GPU_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed, 6 deselected" in done.stdout
