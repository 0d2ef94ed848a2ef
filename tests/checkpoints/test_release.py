"""Folders and runs of older versions, whose options may mean something else today."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.pretrained import from_pretrained


@pytest.mark.parametrize(
    ("temperature", "learned", "expected"), [(2.0, True, 1.0), (0.001, True, 0.005), (2.0, False, 2.0)]
)
def test_a_run_that_started_beyond_the_temperatures_bounds_still_loads(
    tmp_path: Path, temperature: float, learned: bool, expected: float
) -> None:
    spec = quickstart_spec(tmp_path)
    spec["init_args"]["loss"]["init_args"] = {"temperature": 0.05, "learn_temperature": learned}
    checkpoint = run_checkpoint(tmp_path / "run", spec)
    spec["init_args"]["loss"]["init_args"]["temperature"] = temperature
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model": spec}))
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["loss.log_temperature"] = torch.tensor(math.log(temperature))
    torch.save(content, checkpoint)
    export(checkpoint, tmp_path / "exported")
    for path in (checkpoint, tmp_path / "exported"):
        assert from_pretrained(path).loss.temperature.item() == pytest.approx(expected)
