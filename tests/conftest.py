"""What holds for every test: no network, and the same random numbers each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fixtures.ray_cluster import TwoNodes

TESTS = Path(__file__).parent

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WDS_SECURE"] = "1"
# Lightning 2.6 still calls the names that jsonargparse 5 will drop
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
# A test that calls make is no part of the make that called the tests: it would print where it is, and take its options
for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Some tests fork, and a child waits for ever for the threads that OpenMP had in its parent."""
    import torch

    torch.set_num_threads(1)


APPS = (
    "apps/",
    "search/",
    *(f"cli/commands/test_{name}.py" for name in ("encode", "index", "search", "serve")),
)
"""Folders and files whose tests have the marker `apps`, and are run by `make test-apps` in place of `make test`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `APPS`, and put those of MTEB and of searches last.

    The latter start threads that a process that is forked later waits for: MTEB imports polars, an index lancedb; Ray
    has threads of its own.
    """
    for item in items:
        path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
        if path.startswith(APPS):
            item.add_marker(pytest.mark.apps)
    last = (
        *("integrations/*.py", "integration/test_same_embeddings.py"),
        *("search/*.py", "commands/test_index.py", "commands/test_search.py", "*ray*.py"),
    )
    items.sort(key=lambda item: any(item.path.match(name) for name in last))


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[TwoNodes]:
    """Two nodes of Ray, to which this process is connected; of tests with the marker `ray`."""
    from fixtures.ray_cluster import two_nodes
    from virtue_pl.cluster import RayOptions, ray_session

    with two_nodes() as found, ray_session(RayOptions(address=found.address)):
        yield found


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
