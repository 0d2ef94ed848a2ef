"""The DataModule that all streaming ones extend: ranks, epochs, the model's collator, skipped samples."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule

from virtue_pl.data.streaming.loader import BatchStream, StreamLoader
from virtue_pl.data.streaming.options import ReaderOptions, check_counts
from virtue_pl.data.streaming.pipeline import ReaderInfo
from virtue_pl.data.streaming.skip_log import skip_summary
from virtue_pl.data.streaming.training_loader import TrainingLoader
from virtue_pl.data.streaming.training_stream import PlannedStream
from virtue_pl.types import Collator, VirtueError


class StreamingDataModule(LightningDataModule):
    """A DataModule whose loaders are `StreamLoader`s.

    Args:
        batch_size: training samples of a step on one rank.
        reader: how records are read.

    Example:
        >>> data = StreamingDataModule(batch_size=8, reader=ReaderOptions(num_workers=2))
        >>> data.reader_info().num_readers, data.skip_summary()
        (1, 'no bad samples')
    """

    def __init__(self, batch_size: int, reader: ReaderOptions) -> None:
        super().__init__()
        check_counts({"batch_size": batch_size})
        self.batch_size = batch_size
        self.reader = reader
        self.epoch = 0
        self._collator: Collator | None = None
        self.skipped: dict[str, str] = {}
        """The problem of every sample skipped so far, in all loaders and their workers, by its key."""

    def connect(self, collator: Collator) -> None:
        """Set the model's collator, which turns samples into the model's batches."""
        self._collator = collator

    @property
    def rank(self) -> int:
        """Return this process's index among all ranks; 0 without a trainer."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Return the number of ranks; 1 without a trainer."""
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def num_workers(self) -> int:
        """Return the number of data workers of this rank."""
        if self.trainer is None:
            return self.reader.count_workers("cpu", 1)
        strategy = self.trainer.strategy
        return self.reader.count_workers(strategy.root_device.type, self.world_size // max(1, self.trainer.num_nodes))

    @property
    def precision(self) -> str | None:
        """Return the trainer's precision; None without a trainer."""
        return None if self.trainer is None else str(self.trainer.precision)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to stream, where there is no trainer."""
        self.epoch = epoch

    def current_epoch(self) -> int:
        """Return the trainer's epoch, or else the one of `set_epoch`."""
        return self.epoch if self.trainer is None else self.trainer.current_epoch

    def skip_summary(self) -> str:
        """Return one line on the samples that were skipped so far."""
        return skip_summary(self.skipped)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, for a checkpoint."""
        return {"epoch": self.current_epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch of a checkpoint."""
        self.epoch = state_dict["epoch"]

    def _require_collator(self) -> Collator:
        """Return the model's collator. Raises VirtueError where `connect` has not been called."""
        if self._collator is None:
            raise VirtueError(
                f"{type(self).__name__} is not connected to a model: call connect(model.collator) before asking it for"
                " batches"
            )
        return self._collator

    def reader_info(self) -> ReaderInfo:
        """Return this rank's position among the readers, and its limits of bad samples."""
        return ReaderInfo(self.rank, self.world_size, limits=self.reader.limits)

    def _loader(self, stream: BatchStream) -> StreamLoader:
        make = TrainingLoader if isinstance(stream, PlannedStream) else StreamLoader
        return make(stream, self.num_workers, self.current_epoch, self.skipped)  # type: ignore[arg-type]
