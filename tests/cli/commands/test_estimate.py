"""`virtue-pl estimate` of the paper's configs, without weights, hub or data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fixtures.pages import ROOT
from virtue_pl.cli.main import main

SIZES = ROOT / "configs/virtue_2b.yaml"


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A layer that leaves two layers of each network, and 64 rows."""
    sizes = yaml.safe_load(SIZES.read_text())["shared"]["vlm_sizes"]
    sizes["text_config"]["num_hidden_layers"] = sizes["vision_config"]["depth"] = 2
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"shared": {"vlm_sizes": sizes, "batch_size": 64}}))
    return str(path)


def test_a_report_of_a_described_model(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    target = tmp_path / "estimate.json"
    options = ["--device", "a100", "--json", str(target)]
    assert main(["estimate", "--config", str(SIZES), "--config", small, *options]) == 0
    report = json.loads(target.read_text())
    memory, flops = dict(report["memory"]), dict(report["flops"])
    assert memory.pop("total") == sum(memory.values())
    total, model = flops.pop("total"), flops.pop("model")
    assert (total, model) == (sum(flops.values()), sum(flops.values()) - flops["recomputed"])
    assert report["chunk_size"] == 2 and report["tokens"]["query"] > 600
    assert report["hours"] == pytest.approx(report["steps"] * total / (312e12 * 0.4) / 3600)
    assert report["largest_batch"] > report["largest_whole_batch"] > 16
    assert report["parameters"]["all"]["trained"] < report["parameters"]["all"]["total"]
    printed = capsys.readouterr().out
    assert "stored" in printed and "largest batch" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "h10"], "--device is h10, expected one of b200"),
        (["--utilisation", "2"], "--utilisation is 2, expected more than 0 and at most 1"),
        (["--trainer.precision", "64-true"], "trainer.precision is 64-true, expected one of bf16-mixed"),
        (["--querry-tokens", "3"], "querry-tokens"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", str(SIZES), *options]) in (1, 2)
    assert message in capsys.readouterr().err
