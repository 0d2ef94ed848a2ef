"""Checkpoints that are written whole or not at all, whatever ends the process or the disk's power."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from virtue_pl.types import remove_left_behind, replace_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writer of checkpoints beside their place, which are synced to the disk and then renamed.

    Lightning's own writes to the temporary folder, and copies from there if that is on another disk: a process that is
    killed meanwhile leaves half a file under the checkpoint's name, in place of the last good one. This one streams to
    the disk, too, where Lightning's first makes a copy of the checkpoint in memory. A path that is a URL is written as
    Lightning does.

    Example:
        >>> trainer = Trainer(plugins=[WholeCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, and remove what processes that were killed while writing the same one have left."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        remove_left_behind(path)
        with replace_whole(path, sync=True) as temporary, temporary.open("wb") as file:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            torch.save(checkpoint, file)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Have a trainer write its checkpoints by `WholeCheckpointIO`, unless it was given another way."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()
