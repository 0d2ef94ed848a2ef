"""What every DataModule that streams shares: its place among the ranks, the epoch, the model's preprocess, what was skipped."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule

from virtue_pl.data.loader import BatchStream, StreamLoader
from virtue_pl.data.stream import skip_summary
from virtue_pl.types import Preprocess, VirtueError


class StreamingDataModule(LightningDataModule):
    """A DataModule whose loaders are `StreamLoader`s.

    Args:
        batch_size: training samples a step and rank.
        num_workers: data workers a rank; 0 reads in the training process.
        seed: of the training stream.
        max_bad_samples: how many different bad samples each worker skips before the run stops.
        max_consecutive_bad: the same for bad samples in a row.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int, max_bad_samples: int, max_consecutive_bad: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_bad_samples = max_bad_samples
        self.max_consecutive_bad = max_consecutive_bad
        self.epoch = 0
        self._preprocess: Preprocess | None = None
        self.skipped: dict[str, str] = {}
        """Every sample that was skipped so far, in all loaders and their workers: key -> problem."""

    def connect(self, preprocess: Preprocess) -> None:
        """Takes what data must learn from the model: how samples become its batches."""
        self._preprocess = preprocess

    @property
    def rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world(self) -> int:
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

    def _connected(self) -> Preprocess:
        if self._preprocess is None:
            raise VirtueError(f"{type(self).__name__} is not connected to a model: call connect(model.preprocess) before asking it for batches")
        return self._preprocess

    def _place_and_limits(self) -> dict[str, int]:
        return {
            "rank": self.rank,
            "world": self.world,
            "max_bad_samples": self.max_bad_samples,
            "max_consecutive_bad": self.max_consecutive_bad,
        }

    def _loader(self, stream: BatchStream) -> StreamLoader:
        return StreamLoader(stream, self.num_workers, self.current_epoch, self.skipped)


def check_counts(counts: dict[str, int | None]) -> None:
    """Raises VirtueError for an option that is less than 1; None is not given."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise VirtueError(f"{option} is {value}, expected 1 or more")
