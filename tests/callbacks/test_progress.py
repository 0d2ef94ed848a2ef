"""What the terminal shows before and during a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from virtue_pl.callbacks import ParameterTable, StepProgress


class Recorded(StepProgress):
    """A bar that notes its description and its numbers after every batch."""

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        super().on_train_batch_end(*arguments, **named)
        task = self.train_progress_bar
        seen.append((task.description.strip(), task.completed, task.total))


seen: list[tuple[str, float, float | None]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


class TwoBatches(BoringModel):
    """Four rows in two batches an epoch."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(4, 32), batch_size=2)


def fit(tmp_path: Any, **settings: Any) -> None:
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "limit_val_batches": 0}
    callbacks = [Recorded(), ParameterTable()]
    Trainer(default_root_dir=tmp_path, callbacks=callbacks, **{**options, **settings}).fit(TwoBatches())


def test_steps_of_how_many_over_several_epochs(tmp_path: Any) -> None:
    fit(tmp_path, max_steps=5, max_epochs=-1)
    assert seen == [("Step", number, 5) for number in range(1, 6)]


def test_accumulated_batches_are_one_step(tmp_path: Any) -> None:
    fit(tmp_path, max_steps=2, max_epochs=-1, accumulate_grad_batches=2)
    assert [completed for _, completed, _ in seen] == [0, 1, 1, 2]


@pytest.mark.parametrize("settings, first", [({"max_epochs": 2}, "Epoch 1 of 2"), ({"max_time": "00:00:00:00"}, None)])
def test_epochs_of_how_many(tmp_path: Any, settings: dict[str, Any], first: str | None) -> None:
    fit(tmp_path, **settings)
    if first:
        assert [completed for _, completed, _ in seen] == [1, 2, 1, 2]
        assert {description for description, _, _ in seen} == {first, "Epoch 2 of 2"}


def test_the_table_says_what_is_trained(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, max_steps=1)
    shown = capsys.readouterr().out
    assert "Linear" in shown and "66 of 66 parameters are trained" in " ".join(shown.split())
    assert "FLOPs" not in shown and "eval mode" not in shown
