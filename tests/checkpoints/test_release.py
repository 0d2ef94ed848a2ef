"""Folders and runs of older versions, whose options may mean something else today."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.checkpoints.release import construct
from virtue_pl.losses.contrastive import ContrastiveLoss, InfoNCELoss
from virtue_pl.losses.sigmoid import SigmoidLoss


def test_a_run_that_started_beyond_the_temperatures_bounds_still_loads(tmp_path: Path) -> None:
    spec = quickstart_spec(tmp_path)
    spec["init_args"]["connector"]["init_args"]["class_names"] = None
    checkpoint = run_checkpoint(tmp_path / "run", spec)
    spec["init_args"]["loss"]["init_args"]["temperature"] = 2.0
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"model": spec}))
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["loss.log_temperature"] = torch.tensor(math.log(2.0))
    torch.save(content, checkpoint)
    export(checkpoint, tmp_path / "exported")
    for path in (checkpoint, tmp_path / "exported"):
        assert from_pretrained(path).loss.temperature.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cls", "stated", "found"),
    [
        (InfoNCELoss, {"temperature": 0.001, "learn_temperature": True}, 0.005),
        (InfoNCELoss, {"temperature": 0.001}, 0.001),
        (SigmoidLoss, {"temperature": 2.0}, 1.0),
        (SigmoidLoss, {"temperature": 2.0, "learn_temperature": False}, 2.0),
        (SigmoidLoss, {"temperature": 0.3}, 0.3),
    ],
)
def test_a_stored_loss_of_any_version_is_built(
    tmp_path: Path, cls: type[ContrastiveLoss], stated: dict[str, Any], found: float
) -> None:
    assert construct(cls, stated, tmp_path, ()).temperature.item() == pytest.approx(found)
