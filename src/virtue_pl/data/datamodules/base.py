"""What every DataModule that streams shares: its rank among all, the epoch, the model's collator, what was skipped."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule

from virtue_pl.data.streaming.loader import BatchStream, StreamLoader
from virtue_pl.data.streaming.options import ReaderOptions, check_counts
from virtue_pl.data.streaming.pipeline import ReaderInfo, skip_summary
from virtue_pl.types import Collator, VirtueError


class StreamingDataModule(LightningDataModule):
    """A DataModule whose loaders are `StreamLoader`s.

    Args:
        batch_size: training samples a step and rank.
        reader: how records are read.
    """

    def __init__(self, batch_size: int, reader: ReaderOptions) -> None:
        super().__init__()
        check_counts({"batch_size": batch_size})
        self.batch_size = batch_size
        self.reader = reader
        self.epoch = 0
        self._collator: Collator | None = None
        self.skipped: dict[str, str] = {}
        """Every sample that was skipped so far, in all loaders and their workers: key -> problem."""

    def connect(self, collator: Collator) -> None:
        """Takes what data must learn from the model: how samples become its batches."""
        self._collator = collator

    @property
    def rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch to stream, where no trainer says it."""
        self.epoch = epoch

    def current_epoch(self) -> int:
        return self.epoch if self.trainer is None else self.trainer.current_epoch

    def skip_summary(self) -> str:
        """One line on the samples that were skipped so far."""
        return skip_summary(self.skipped)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.current_epoch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]

    def _connected(self) -> Collator:
        if self._collator is None:
            raise VirtueError(
                f"{type(self).__name__} is not connected to a model: call connect(model.collator) before asking it for"
                " batches"
            )
        return self._collator

    def reader_info(self) -> ReaderInfo:
        """Return what a stream must know of this rank: which it is, and how much bad input it passes over."""
        return ReaderInfo(self.rank, self.world_size, limits=self.reader.limits)

    def _loader(self, stream: BatchStream) -> StreamLoader:
        return StreamLoader(stream, self.reader.num_workers, self.current_epoch, self.skipped)
