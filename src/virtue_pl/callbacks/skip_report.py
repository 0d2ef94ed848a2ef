"""A report of the samples that were skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


@runtime_checkable
class CountsSkipped(Protocol):
    """A DataModule that knows the bad samples which streaming left out in this process: key -> problem."""

    @property
    def skipped(self) -> Mapping[str, str]: ...


class SkipReport(Callback):
    """Says in one line how many bad samples were skipped so far, at the end of each epoch in which there were
    new ones.
    """

    def __init__(self) -> None:
        self._told = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CountsSkipped):
            return
        problems = data.skipped
        total = int(
            trainer.strategy.reduce(torch.tensor(len(problems), device=trainer.strategy.root_device), reduce_op="sum")
        )
        if total > self._told and trainer.is_global_zero:
            print(describe_skipped(total, problems), flush=True)
        self._told = total


def describe_skipped(total: int, problems: Mapping[str, str], shown: int = 3) -> str:
    """One line: how many on all processes, and the latest of this one's by key."""
    latest = [f"{key}: {problem}" for key, problem in list(problems.items())[-shown:]]
    return f"skipped {total} bad sample{'s' * (total > 1)} so far" + (
        ", the latest: " + "; ".join(latest) if latest else ""
    )
