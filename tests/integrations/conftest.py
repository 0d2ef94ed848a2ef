"""One tiny model for all tests of the faces for other libraries: exported, and in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.embedder import Embedder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrations")
    export(run_checkpoint(folder / "run", quickstart_spec(folder)), folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="session")
def embedder(exported: Path) -> Embedder:
    return Embedder.from_pretrained(exported, device="cpu")
