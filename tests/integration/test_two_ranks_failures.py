"""What goes wrong on one of two ranks ends both, soon, with its reason on every rank's last line."""

from __future__ import annotations

import os
import signal
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
from virtue_pl.cli.main import tell
from virtue_pl.cli.run.failures import failures_told
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


class Breaks(Callback):
    """Ends a rank in its third step."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, batch_idx) != (self.rank, 2):
            return
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "a mistake":
            raise VirtueError("shards/7.tar has gone: fetch it again")
        raise ZeroDivisionError("a defect")


def fail(rank: int, failing: int, how: str) -> int:
    batches = [SimpleNamespace(keys=("set/0",), factor=1.0) for _ in range(50)]
    trainer = AutoPrecisionTrainer(
        accelerator="cpu",
        max_epochs=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        callbacks=[Breaks(failing, how)],
        **QUIET,
    )
    try:
        with failures_told("virtue-pl"):
            trainer.fit(Weight(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    except VirtueError as error:
        return tell(str(error), 1)
    return 0


REASONS = {"a mistake": "shards/7.tar has gone: fetch it again", "a defect": "ZeroDivisionError: a defect"}


@pytest.mark.ddp
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("how", ["a mistake", "a defect", "killed"])
def test_a_rank_that_fails_ends_the_other_with_its_reason_on_the_last_line(
    tmp_path: Path, failing: int, how: str
) -> None:
    with started(tmp_path, fail, failing, how) as ranks:
        codes = ranks.wait(50)
    printed = ranks.printed(1 - failing).strip().splitlines()
    assert codes[1 - failing] == 1, (codes, printed[-30:])
    if how == "killed":
        assert codes[failing] == -signal.SIGKILL and "has gone without a word" in printed[-1]
    else:
        assert printed[-1] == f"virtue-pl: rank {failing} failed: {REASONS[how]}"
        assert ranks.printed(failing).strip().splitlines()[-1].endswith(REASONS[how])
