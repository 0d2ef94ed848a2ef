"""`SkipReport`: a line about the bad samples that streaming skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


@runtime_checkable
class CountsSkipped(Protocol):
    """A DataModule that lists the bad samples which streaming skipped in this process.

    Example:
        >>> class Data:
        ...     skipped = {"shard-0/7": "no image"}
        >>> isinstance(Data(), CountsSkipped)
        True
    """

    @property
    def skipped(self) -> Mapping[str, str]:
        """Return the problem of each skipped sample, by its key."""
        ...


class SkipReport(Callback):
    """Callback that prints how many bad samples were skipped so far, after each epoch in which there were new ones.

    Example:
        >>> trainer = Trainer(callbacks=[SkipReport()])
    """

    def __init__(self) -> None:
        self._reported = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CountsSkipped):
            return
        problems = data.skipped
        total = int(
            trainer.strategy.reduce(torch.tensor(len(problems), device=trainer.strategy.root_device), reduce_op="sum")
        )
        if total > self._reported and trainer.is_global_zero:
            print(describe_skipped(total, problems), flush=True)
        self._reported = total


def describe_skipped(total: int, problems: Mapping[str, str], num_latest: int = 3) -> str:
    """Return one line: how many were skipped by all processes, and the latest of this process by key.

    Example:
        >>> describe_skipped(1, {"shard-0/7": "no image"})
        'skipped 1 bad sample so far, the latest: shard-0/7: no image'
    """
    latest = [f"{key}: {problem}" for key, problem in list(problems.items())[-num_latest:]]
    return f"skipped {total} bad sample{'s' * (total > 1)} so far" + (
        ", the latest: " + "; ".join(latest) if latest else ""
    )
