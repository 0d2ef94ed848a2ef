"""The device of the tests of a GPU: `cuda`, or what VIRTUE_GPU_DEVICE says, so that the code runs without a GPU."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

DRIVER = Path("/proc/driver/nvidia/version")
"""There is where a GPU's driver is loaded; a torch that then finds none is at fault, and no reason to skip."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is tested. Skips on a machine without a GPU, and fails where one is that torch does not find."""
    asked = os.environ.get("VIRTUE_GPU_DEVICE", "cuda")
    if torch.device(asked).type == "cuda" and not torch.cuda.is_available():
        if DRIVER.exists():
            pytest.fail(f"a GPU's driver is loaded, and torch {torch.__version__} finds no GPU")
        pytest.skip("this machine has no GPU; VIRTUE_GPU_DEVICE=cpu runs the same code on a CPU")
    return torch.device(asked)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say each reason for which tests of a GPU were skipped once, which `-r s` says for every test."""
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if one.nodeid.startswith("tests/gpu/")]
    reasons = Counter(report.longrepr[2] for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} not run: {reason.removeprefix('Skipped: ')}")
