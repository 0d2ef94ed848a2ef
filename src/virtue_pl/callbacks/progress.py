"""`StepProgress`, `ParameterTable` and `LearningRates`: what the terminal and the loggers show of a run."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, RichModelSummary, RichProgressBar
from lightning.pytorch.utilities.model_summary import get_human_readable_count


class StepProgress(RichProgressBar):
    """Callback that shows a bar over the whole training: the optimizer's steps of how many, and the time left.

    Where `max_steps` is not set it shows the epoch of how many, and a bar over its batches, as Lightning's does.

    Example:
        >>> trainer = Trainer(max_steps=140, callbacks=[StepProgress()])
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_disabled or not counts_steps(trainer):
            super().on_train_epoch_start(trainer, pl_module)
        elif self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        shown = trainer.global_step - 1 if counts_steps(trainer) else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, shown)

    def _initialize_train_progress_bar_id(self) -> None:
        if counts_steps(self.trainer):
            self.train_progress_bar_id = self._add_task(self.trainer.max_steps, self._get_train_description(0))
            self._update(self.train_progress_bar_id, self.trainer.global_step)
        else:
            super()._initialize_train_progress_bar_id()

    def _get_train_description(self, current_epoch: int) -> str:
        if counts_steps(self.trainer):
            text = "Step"
        elif self.trainer.max_epochs is None or self.trainer.max_epochs < 0:
            text = f"Epoch {current_epoch + 1}"
        else:
            text = f"Epoch {current_epoch + 1} of {self.trainer.max_epochs}"
        return text.ljust(len(self.validation_description))


class ParameterTable(RichModelSummary):
    """Callback that prints a table of the model's parts and their parameters before training.

    Example:
        >>> trainer = Trainer(callbacks=[ParameterTable()])
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **summarize_kwargs: Any,
    ) -> None:
        """Print a row for each part, and below them how many parameters are trained.

        summary_data: a column's name with its cells, as Lightning gathers them.
        """
        from rich import get_console
        from rich.table import Table

        columns = {name.strip(): cells for name, cells in summary_data}
        trained = get_human_readable_count(trainable_parameters)
        table = Table(
            caption=f"{trained.strip()} of {get_human_readable_count(total_parameters)} parameters are trained"
        )
        for name in ("Name", "Type", "Params"):
            table.add_column(name.lower(), justify="right" if name == "Params" else "left")
        for row in zip(*(columns[name] for name in ("Name", "Type", "Params")), strict=True):
            table.add_row(*row)
        get_console().print(table)


class LearningRates(LearningRateMonitor):
    """Callback that logs each parameter group's learning rate at every step, as `lr/GROUP`; nothing without a logger.

    Example:
        >>> trainer = Trainer(logger=False, callbacks=[LearningRates()])
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_batch_start(trainer, *args, **kwargs)


def counts_steps(trainer: Trainer) -> bool:
    """Return whether the run's length is given in steps."""
    return trainer.max_steps > 0
