"""What holds for every test: no network, and the same random numbers each time."""

from __future__ import annotations

import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WDS_SECURE"] = "1"
# Lightning 2.6 still calls the names that jsonargparse 5 will drop
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
# A test that calls make is no part of the make that called the tests: it would print where it is, and take its options
for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Some tests fork, and a child waits for ever for the threads that OpenMP had in its parent."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of MTEB and of searches last: they start threads that a process that is forked later waits for.

    MTEB imports polars, an index lancedb; Ray has threads of its own.
    """
    last = ("integrations/test_mteb.py", "search/*.py", "commands/test_index.py", "commands/test_search.py", "*ray*.py")
    items.sort(key=lambda item: any(item.path.match(name) for name in last))


@pytest.fixture(autouse=True)
def seeded() -> None:
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """Let subnormal numbers be numbers, whatever state of the processor an earlier test left in this thread.

    Native code may switch them off for good; hypothesis then refuses to draw floats.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
