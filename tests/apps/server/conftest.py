"""One tiny model for all tests of the server, and one server around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures.running_server import Running, serving
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("serve")
    model = from_pretrained(run_checkpoint(folder / "run", quickstart_spec(folder)))
    return Embedder(model, instructions={"query": "find"})


@pytest.fixture(scope="session")
def server(embedder: Embedder) -> Iterator[Running]:
    with serving(lambda: embedder) as running:
        yield running
