"""`LastCheckpoint`, of the last step or of that at which SIGTERM came, and `BestCheckpoint`, of the best validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

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

    def __init__(self) -> None:
        self._validated_at = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise VirtueError(
                "LastCheckpoint found no ModelCheckpoint to save beside: set `trainer.enable_checkpointing` to true"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the training batch behind which a validation came to its end."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated_at = batches_begun(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say in a checkpoint whether a validation is due, and where the next epoch begins."""
        loop = checkpoint.get("loops", {}).get("fit_loop")
        if not loop or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._validated_at != batches_begun(trainer) and is_validation_due(trainer):
            mark_validation_due(loop)
        checkpoint["epoch"] -= uncount_epoch(loop, trainer.num_training_batches)

    @staticmethod
    def save(trainer: Trainer) -> None:
        """Save `last.ckpt` into the folder of the trainer's ModelCheckpoint."""
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
            name = checkpoint.CHECKPOINT_NAME_LAST + checkpoint.FILE_EXTENSION
            trainer.save_checkpoint(Path(checkpoint.dirpath) / name, weights_only=False)  # the optimizer's state, too


def batches_begun(trainer: Trainer) -> int:
    """Return the number of training batches that were begun so far, over all epochs."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether a validation comes behind the last training batch; one that has come counts, too."""
    epochs, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not batches_begun(trainer) or epochs._data_fetcher is None:
        return False
    if not epoch_loop._should_check_val_fx(epochs._data_fetcher):
        return False
    epoch_loop.val_loop.setup_data()
    return not epoch_loop.val_loop.skip


def mark_validation_due(loop: dict[str, Any]) -> None:
    """Have a run that goes on from a checkpoint's state of the fit loop validate before it trains.

    Lightning validates first only where a validation was begun and left between two hooks of a batch. A checkpoint of a
    step is saved before the validation behind it, and SIGTERM ends a validation behind a batch: those would be lost.
    """
    batches, validated = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    done = validated["total"]["completed"]
    validated["total"] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    validated["current"] = dict.fromkeys(validated["current"], 0)
    validated["is_last_batch"] = False


def uncount_epoch(loop: dict[str, Any], num_batches: float) -> int:
    """Say in a checkpoint's state of the fit loop whether an epoch that was counted was whole; return 1 if it was not.

    Where training ends, Lightning counts the epoch although it may be in its middle, and has not yet begun to count the
    next one's batches although it may be whole.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if not epochs["current"]["started"] or epochs["current"]["completed"] != epochs["current"]["started"]:
        return 0
    if not batches["current"]["ready"]:
        return 0
    if batches["current"]["ready"] < num_batches:
        for counts in epochs.values():
            counts["processed"] -= 1
            counts["completed"] -= 1
        return 1
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    return 0


class BestCheckpoint(ModelCheckpoint):
    """Callback that saves `best.ckpt` after each validation whose metric is better than all before it.

    A run that validates on nothing has none. Where validation logs no such metric, it says once which there are.

    Args:
        dirpath: the folder, that of the run's other checkpoints.
        monitor: a metric that validation logs.
        mode: "max" or "min", whichever is better.

    Example:
        >>> checkpoints = ModelCheckpoint("runs/mini/checkpoints", every_n_train_steps=50)
        >>> best = BestCheckpoint("runs/mini/checkpoints", monitor="val/hit@1", mode="max")
        >>> trainer = Trainer(callbacks=[checkpoints, best])
    """

    def __init__(self, dirpath: str, monitor: str, mode: Literal["min", "max"]) -> None:
        super().__init__(
            dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._told = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif trainer.state.fn == TrainerFn.FITTING and not self._told:
            self._told = True
            logged = [name for name in sorted(trainer.callback_metrics) if name.startswith("val")]
            rank_zero_info(
                f"there is no best.ckpt: validation logs {', '.join(logged) or 'nothing'}, and not {self.monitor};"
                " set BestCheckpoint's monitor to one of them"
            )
