"""Speed, skipped samples, and a checkpoint when the run is told to stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from virtue_pl.types import VirtueError


class Throughput(Callback):
    """Samples a second over the last steps and all processes, as `train/samples_per_second`, in the log and the progress bar.

    Validation does not count. It is written as often as the trainer logs (`log_every_n_steps`).

    Args:
        window: over how many steps to average.
    """

    def __init__(self, window: int = 20) -> None:
        if window < 1:
            raise VirtueError(f"Throughput.window is {window}, expected at least 1 step")
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)
        self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        self._steps.append((len(batch) * trainer.world_size, now - self._last))
        self._last = now
        samples, seconds = map(sum, zip(*self._steps, strict=True))
        pl_module.log("train/samples_per_second", samples / seconds, prog_bar=True, batch_size=1)


@runtime_checkable
class CountsSkipped(Protocol):
    """A DataModule that knows the bad samples which streaming left out in this process: key -> problem."""

    @property
    def skipped(self) -> Mapping[str, str]: ...


class SkipReport(Callback):
    """Says in one line how many bad samples were skipped so far, at the end of each epoch in which there were new ones."""

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
        total = int(trainer.strategy.reduce(torch.tensor(len(problems), device=trainer.strategy.root_device), reduce_op="sum"))
        if total > self._told and trainer.is_global_zero:
            print(describe_skipped(total, problems), flush=True)
        self._told = total


def describe_skipped(total: int, problems: Mapping[str, str], shown: int = 3) -> str:
    """One line: how many on all processes, and the latest of this one's by key."""
    latest = [f"{key}: {problem}" for key, problem in list(problems.items())[-shown:]]
    return f"skipped {total} bad sample{'s' * (total > 1)} so far" + (", the latest: " + "; ".join(latest) if latest else "")


class LastCheckpoint(Callback):
    """Saves `last.ckpt` beside the run's checkpoints when training ends, or when SIGTERM stops it, after the step that was under way.

    `ModelCheckpoint(every_n_train_steps=...)` leaves out the steps behind the last multiple. Lightning raises SIGTERMException at the
    end of a step; its own `save_on_exception=True` would save after any error too, and so replace the last good checkpoint by
    one of a diverged model.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise VirtueError("LastCheckpoint found no ModelCheckpoint to save beside: set `trainer.enable_checkpointing` to true")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING:
            self.save(trainer)

    @staticmethod
    def save(trainer: Trainer) -> None:
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
            trainer.save_checkpoint(Path(checkpoint.dirpath) / (checkpoint.CHECKPOINT_NAME_LAST + checkpoint.FILE_EXTENSION))
