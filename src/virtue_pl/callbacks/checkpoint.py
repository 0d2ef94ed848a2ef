"""`LastCheckpoint`: a checkpoint of the last step, or of the step at which SIGTERM stopped the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from virtue_pl.types import VirtueError


class LastCheckpoint(Callback):
    """Callback that saves `last.ckpt` when training ends, or after the step in which SIGTERM came.

    It lies beside the run's other checkpoints.

    `ModelCheckpoint(every_n_train_steps=...)` leaves out the steps behind the last multiple. Lightning raises
    SIGTERMException at the end of a step; its own `save_on_exception=True` would save after any error too, and so
    replace the last good checkpoint by one of a diverged model.

    Example:
        >>> checkpoints = ModelCheckpoint("runs/mini/checkpoints", every_n_train_steps=50)
        >>> trainer = Trainer(callbacks=[checkpoints, LastCheckpoint()])
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise VirtueError(
                "LastCheckpoint found no ModelCheckpoint to save beside: set `trainer.enable_checkpointing` to true"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in a checkpoint of an epoch that was counted whether it was whole, so that the next run begins there.

        Where training ends, Lightning counts the epoch although it may be in its middle, and has not yet begun to count
        the next one's batches although it may be whole.
        """
        loop = checkpoint.get("loops", {}).get("fit_loop")
        if not loop or trainer.state.fn != TrainerFn.FITTING:
            return
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        if not epochs["current"]["started"] or epochs["current"]["completed"] != epochs["current"]["started"]:
            return
        if not batches["current"]["ready"]:
            return
        if batches["current"]["ready"] < trainer.num_training_batches:
            for counts in epochs.values():
                counts["processed"] -= 1
                counts["completed"] -= 1
            checkpoint["epoch"] -= 1
        else:
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False

    @staticmethod
    def save(trainer: Trainer) -> None:
        """Save `last.ckpt` into the folder of the trainer's ModelCheckpoint."""
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
            name = checkpoint.CHECKPOINT_NAME_LAST + checkpoint.FILE_EXTENSION
            trainer.save_checkpoint(Path(checkpoint.dirpath) / name, weights_only=False)  # the optimizer's state, too
