"""What is measured of each kind of query; never how long it took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.run_checkpoint import read_run
from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.probes import cost
from virtue_pl.evaluation.reports import probe_tables
from virtue_pl.types import VirtueError


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("cost")
    return Embedder(read_run(run_checkpoint(folder / "run", quickstart_spec(folder))).build(), "cpu")


def test_every_kind_of_query_is_measured(embedder, monkeypatch):
    towers = []
    encode = embedder.model.segmentation.backbone.image_features
    monkeypatch.setattr(
        embedder.model.segmentation.backbone,
        "image_features",
        lambda pixels: towers.append(len(pixels)) or encode(pixels),
    )
    found = json.loads(
        json.dumps(
            cost.measure_cost(embedder, torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8), rows=2, repeats=1)
        )
    )
    assert set(found["modes"]) == {"text", "image", "point", "box", "mask", "crop"}
    for mode, row in found["modes"].items():
        assert row["first_s"] > 0 and row["rows_per_second"] > 0
        assert (row["next_s"] is None) == (mode == "text")
    # warm-up, first and two rows together in every mode with an image; a crop's next prompt is a new image
    assert sum(towers) == 4 * 4 + 5
    assert found["image"] == [64, 48] and found["dtype"] == "float32" and found["device"] == "cpu"
    table = probe_tables.cost_table(found)
    assert [row[0] for row in table.cells.rows] == list(found["modes"]) and "median of 1" in table.caption
    assert table.cells.rows[0][2] == "" and all(row[1] and row[3] for row in table.cells.rows)
    with pytest.raises(VirtueError, match=r"rows is 0, repeats 5, expected at least 1 each"):
        cost.measure_cost(embedder, torch.zeros(3, 8, 8, dtype=torch.uint8), rows=0)


@pytest.mark.parametrize("mode", ["box", "crop", "mask", "image", "point", "text"])
def test_every_number_is_a_query_of_its_own(mode):
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    queries = [cost.QUERIES[mode](image, number) for number in range(6)]
    told = {
        (
            query.text,
            *(part.numpy().tobytes() for p in query.prompts for part in (p.boxes, p.points, p.masks)),
            *(i.shape for i in query.images),
        )
        for query in queries
    }
    assert len(told) == 6


def test_peak_memory_is_told_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    monkeypatch.setattr(cost, "PROCESS", tmp_path)
    with cost.peak_memory(torch.device("cpu")) as peak:
        assert (tmp_path / "clear_refs").read_text() == "5"
    assert peak == {"bytes": 2048 * 1024}
    monkeypatch.setattr(cost, "PROCESS", tmp_path / "absent")
    with cost.peak_memory(torch.device("cpu")) as peak:
        pass
    assert peak == {}
