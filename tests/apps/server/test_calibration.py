"""Integer embeddings are calibrated by encoded rows of the same model, and the reply says so."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from fixtures.running_server import serving
from virtue_pl.apps.server.calibration import Calibration
from virtue_pl.search import EncodedRow, EncodingFacts, row_schema, to_table
from virtue_pl.types import VirtueError

TEXTS = [f"a thing of kind {number}" for number in range(20)]


def write_rows(path, vectors, fingerprint):
    facts = EncodingFacts(fingerprint, "model", vectors.shape[1], documents="texts")
    rows = [EncodedRow(str(number), str(number), vector) for number, vector in enumerate(vectors)]
    pq.write_table(to_table(rows, row_schema(facts)), path)
    return str(path)


@pytest.fixture(scope="module")
def rows(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    return write_rows(folder / "rows.parquet", embedder.encode(TEXTS), embedder.fingerprint())


def test_ranges_are_those_of_the_rows_also_of_their_first_numbers(embedder, rows):
    calibration, vectors = Calibration.read(rows, embedder), embedder.encode(TEXTS)
    np.testing.assert_allclose(calibration.ranges(None), [vectors.min(axis=0), vectors.max(axis=0)], atol=1e-6)
    cut = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(calibration.ranges(8), [cut.min(axis=0), cut.max(axis=0)], atol=1e-6)


def test_rows_of_another_model_or_too_few_are_refused(embedder, tmp_path):
    vectors = embedder.encode(TEXTS)
    with pytest.raises(VirtueError, match="by this model: encode such data with it"):
        Calibration.read(write_rows(tmp_path / "other.parquet", vectors, "f" * 64), embedder)
    with pytest.raises(VirtueError, match="was encoded by model with 8 numbers"):
        Calibration.read(write_rows(tmp_path / "short.parquet", vectors[:, :8], embedder.fingerprint()), embedder)
    with pytest.raises(VirtueError, match="1 rows are too few for a calibration"):
        Calibration.read(write_rows(tmp_path / "one.parquet", vectors[:1], embedder.fingerprint()), embedder)
    with pytest.raises(VirtueError, match="there are no encoded rows"):
        Calibration.read(str(tmp_path / "missing"), embedder)


def test_a_calibrated_server_gives_the_integers_of_python_whatever_else_is_in_the_batch(embedder, rows):
    calibration = Calibration.read(rows, embedder)
    body = {"texts": TEXTS[:3], "embedding_types": ["int8", "uint8", "float"]}

    def start(service):
        service.start(embedder, calibration)

    with serving(start=start) as running:
        found = running.post("/v2/embed", body).json()
        alone = running.post("/v2/embed", {**body, "texts": TEXTS[1:2], "output_dimension": 8}).json()
    expected = embedder.encode(TEXTS[:3], precision="int8", calibration=calibration.ranges(None))
    assert np.abs(np.array(found["embeddings"]["int8"]) - expected).max() <= 1
    assert found["meta"]["calibration"]["rows"] == 20 and np.min(found["embeddings"]["uint8"]) >= 0
    assert len(alone["embeddings"]["int8"][0]) == 8
