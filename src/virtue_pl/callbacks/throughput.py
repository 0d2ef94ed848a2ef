"""`Throughput`: training speed in the log."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from virtue_pl.types import VirtueError


class Throughput(Callback):
    """Callback that logs the samples a second of the last steps, on all processes, as `train/samples_per_second`.

    It stands in the progress bar, too. Validation does not count. It is written as often as the trainer logs
    (`log_every_n_steps`).

    Args:
        window: number of steps to average over.

    Example:
        >>> trainer = Trainer(callbacks=[Throughput(window=50)])
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
