"""What goes wrong on one of two ranks ends both, soon, with its reason on every rank's last line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fixtures.rank_processes import run_ranks, started
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import VirtueError

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Weight(VirtueModule):
    """One weight, whose loss is not finite for a batch that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.load_and_freeze()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.weight * batch.factor).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.1)


def train_on_a_nan(rank: int, folder: Path) -> None:
    """The third step's batch of rank 1 breaks the loss."""
    batches = [
        SimpleNamespace(keys=(f"set/{rank}{step}",), factor=float("nan") if (rank, step) == (1, 2) else 1.0)
        for step in range(6)
    ]
    saving = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    trainer = AutoPrecisionTrainer(
        accelerator="cpu", max_epochs=1, use_distributed_sampler=False, callbacks=[saving, LastCheckpoint()], **QUIET
    )
    model = Weight()
    try:
        trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    except VirtueError as error:
        (folder / f"error{rank}").write_text(str(error))
        torch.save(model.weight.detach(), folder / f"weight{rank}.pt")


@pytest.mark.ddp
def test_a_nan_on_one_rank_stops_both_before_the_optimizer_and_names_its_sample_on_both(tmp_path: Path) -> None:
    run_ranks(tmp_path, train_on_a_nan, tmp_path)
    first, second = ((tmp_path / f"error{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("step 2: the gradient of weight is not finite; rank 1 read set/12; rank 0 read set/02; ")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    for rank in range(2):
        weight = torch.load(tmp_path / f"weight{rank}.pt", weights_only=True)
        assert torch.equal(weight, saved["state_dict"]["weight"]) and weight.isfinite().all()
