"""The device of the tests of a GPU: `cuda`, or what VIRTUE_GPU_DEVICE says, so that the code runs without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

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
        pytest.skip("this machine has no GPU")
    return torch.device(asked)
