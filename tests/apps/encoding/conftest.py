"""A tiny model that all tests of bulk encoding share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoding")
    return run_checkpoint(folder / "run", quickstart_spec(folder))


@pytest.fixture(scope="session")
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(from_pretrained(checkpoint), batch_size=4)
