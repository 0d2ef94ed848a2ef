"""Training speed, logged."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from virtue_pl.types import VirtueError


class Throughput(Callback):
    """Samples a second over the last steps and all processes, as `train/samples_per_second`, in the log and the
    progress bar.

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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._steps.append((len(batch) * trainer.world_size, now - self._last))
        self._last = now
        samples, seconds = map(sum, zip(*self._steps, strict=True))
        pl_module.log("train/samples_per_second", samples / seconds, prog_bar=True, batch_size=1)
