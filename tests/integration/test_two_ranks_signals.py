"""Signals to two ranks: both stop behind the same step, with a checkpoint of it, however the signals come."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fixtures.rank_processes import started
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.engine.module import VirtueModule

STEPS = 100_000
"""More than any of these runs takes."""


class Linear(VirtueModule):
    """One layer; validates on its step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.load_and_freeze()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)


class Told(Callback):
    """Says how far a rank is, and takes its time in a step."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.seconds = file, seconds

    def on_train_batch_end(self, trainer: Any, *more: Any) -> None:
        time.sleep(self.seconds)
        self.file.write_text(str(trainer.global_step))

    def on_validation_batch_start(self, *more: Any) -> None:
        time.sleep(self.seconds)


def train(rank: int, folder: Path, validate_every: int, slower: float) -> int:
    seed_everything(rank, verbose=False)
    told = Told(folder / f"step{rank}", 0.005 + slower * rank)
    trainer = AutoPrecisionTrainer(
        accelerator="cpu",
        max_steps=STEPS,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=STEPS), LastCheckpoint(), told],
    )
    train_loader = DataLoader(torch.ones(STEPS, 2), 2)  # type: ignore[arg-type, var-annotated]
    val_loader = DataLoader(torch.ones(8, 2), 2)  # type: ignore[arg-type, var-annotated]
    try:
        trainer.fit(Linear(), train_loader, val_loader)
    except SIGTERMException:
        (folder / f"stopped{rank}").write_text(str(trainer.global_step))
        return 143
    return 0


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("ranks", "apart", "validate_every", "slower"),
    [
        ((0, 1), 0.0, STEPS, 0.0),
        ((1, 0), 0.1, STEPS, 0.01),
        ((1,), 0.0, STEPS, 0.0),
        ((0,), 0.0, 3, 0.01),
        ((1,), 0.0, 3, 0.0),
    ],
)
def test_both_ranks_stop_behind_one_step_and_leave_its_checkpoint(
    tmp_path: Path, ranks: tuple[int, ...], apart: float, validate_every: int, slower: float
) -> None:
    with started(tmp_path, train, tmp_path, validate_every, slower) as processes:
        processes.wait_for(lambda: all((tmp_path / f"step{rank}").is_file() for rank in range(2)))
        for rank in ranks:
            pid = processes.processes[rank].pid
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            time.sleep(apart)
        assert processes.wait(30) == [143, 143], [processes.printed(rank)[-2000:] for rank in range(2)]
    stopped = {(tmp_path / f"stopped{rank}").read_text() for rank in range(2)}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stopped == {str(saved["global_step"])}
