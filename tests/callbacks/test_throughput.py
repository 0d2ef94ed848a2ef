"""Curves that `Throughput` writes into a run's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fixtures.pages import ROOT
from fixtures.tiny_virtue import pairs, tiny_virtue
from virtue_pl.callbacks import LearningRates, Throughput, throughput
from virtue_pl.engine import FullBatch, Optimization
from virtue_pl.engine.estimation.devices import DEVICES

STEPS = 3
ALWAYS = {
    *("train/loss", "train/in_batch_accuracy", "train/effective_negatives", "train/temperature", "train/grad_norm"),
    *("train/samples_per_second", "train/tokens_per_second", "train/data_wait", "train/peak_memory_gib"),
    *("train/progress", "lr/base", "lr/base.no_decay", "epoch"),
}


class Batches(LightningDataModule):
    """Batches of four pairs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.batch = pairs(model, 4)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([self.batch] * STEPS, batch_size=None)


def curves(folder: Path) -> dict[str, list[float]]:
    model = tiny_virtue()
    model.gradient_cache = FullBatch()
    model.optimization = Optimization(1e-3, 0.01, 0, "constant")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[Throughput(), LearningRates()],
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1e-3,
    )
    trainer.fit(model, datamodule=Batches(model))
    events = EventAccumulator(str(folder)).Reload()
    return {name: [one.value for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    found = curves(tmp_path)
    assert ALWAYS <= set(found)
    assert "train/mfu" not in found  # of a GPU whose peak is known
    assert found["train/effective_negatives"] == [7.0] * STEPS  # three other targets, four hard negatives
    assert found["train/progress"] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(norm > 1e-3 for norm in found["train/grad_norm"])  # before it is clipped
    assert all(0 <= share < 1 for share in found["train/data_wait"])
    assert all(number > 0 for name in ("tokens_per_second", "peak_memory_gib") for number in found[f"train/{name}"])


def test_utilisation_where_the_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "device_name", lambda device: "NVIDIA L4")
    found = curves(tmp_path)
    per_token = [
        used * DEVICES["l4"].float32 / tokens
        for used, tokens in zip(found["train/mfu"], found["train/tokens_per_second"], strict=True)
    ]
    assert per_token == pytest.approx(per_token[:1] * STEPS, rel=1e-3)
    assert per_token[0] > 1e4


def test_the_page_names_every_curve() -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in {*ALWAYS, "train/mfu"} - {"lr/base", "lr/base.no_decay"})
