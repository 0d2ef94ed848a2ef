"""A tiny model that all tests of bulk encoding share."""

from __future__ import annotations

import pytest

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("encoding")
    return Embedder(from_pretrained(run_checkpoint(folder / "run", quickstart_spec(folder))), batch_size=4)
