"""Loaders with a true length, over streams that each data worker reads for itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.partition import ranking_batches, share_for_rank
from virtue_pl.data.streaming.pipeline import ReaderInfo, ToSample
from virtue_pl.data.streaming.readable_samples import collate_readable
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import NoRows, RankingSample, Sample, TensorDataclass, VirtueError


@dataclass(frozen=True, eq=False)
class Delivery(TensorDataclass):
    """Delivery of a worker: a batch, the samples skipped since its last delivery, and why it stopped.

    Example:
        >>> Delivery(batch=None, skipped=(("SCAR_mini/7", "damaged image"),)).error is None
        True
    """

    batch: Any = None
    """None where the worker only reports."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Key and problem of every sample skipped."""
    error: str | None = None
    """Why the worker stopped; None where it did not."""


class BatchStream(IterableDataset[Delivery], ABC):
    """Batches of one epoch, dealt to data workers in turn: worker w of W has batches w, w + W, ...

    `epoch` is in shared memory, since persistent workers have their own copy of everything else.

    Args:
        reader: the rank that is read for, and its limits of bad samples; its data workers are told apart where they
            run.

    Example:
        >>> class Numbers(BatchStream):
        ...     num_batches = 3
        ...     def batches(self, reader, epoch, log):
        ...         return iter(range(reader.worker, 3, reader.num_workers))
        >>> [delivery.batch for delivery in Numbers(ReaderInfo())]
        [0, 1, 2, None]
    """

    def __init__(self, reader: ReaderInfo) -> None:
        super().__init__()
        self.reader = reader
        self.log = SkipLog(reader.limits)
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Return the number of batches of this rank's epoch, over all its workers."""

    @abstractmethod
    def batches(self, reader: ReaderInfo, epoch: int, log: SkipLog) -> Iterator[Any]:
        """Yield this worker's batches, ready for the model; None for one that bad samples left empty."""

    def __iter__(self) -> Iterator[Delivery]:
        info = get_worker_info()
        reader = self.reader if info is None else self.reader.in_worker(info.id, info.num_workers)
        try:
            for batch in self.batches(reader, int(self.epoch), self.log):
                yield Delivery(batch, self.log.drain())
        except VirtueError as error:
            yield Delivery(skipped=self.log.drain(), error=str(error))
        else:
            yield Delivery(skipped=self.log.drain())


def sample_key(sample: Sample | RankingSample) -> str:
    """Return the sample's key."""
    return sample.key


class RankingStream(BatchStream):
    """Every evaluation sample of the named folders once, over all ranks and workers; a batch is of one folder.

    Args:
        folders: folders of shards by name.
        to_sample: the dataset's `to_sample`.
        collate: `Collator.collate_eval`.
        batch_size: samples of a batch.
        rows: of each folder only its first images, as many as have at most so many rows; None for all.
        first_row: of each folder only the images from the one whose first row this is.
        max_pixels: larger images count as bad.
        reader: see `BatchStream`.

    Example:
        >>> stream = RankingStream(data.test_folders, data.to_sample, model.collator.collate_eval, batch_size=8,
        ...     max_pixels=10_000_000, reader=ReaderInfo())  # doctest: +SKIP
        >>> stream.num_batches  # doctest: +SKIP
        88
    """

    def __init__(
        self,
        folders: Mapping[str, ShardFolder],
        to_sample: ToSample,
        collate: Callable[[Sequence[RankingSample]], Any],
        *,
        batch_size: int,
        rows: int | None = None,
        first_row: int = 0,
        max_pixels: int,
        reader: ReaderInfo,
    ) -> None:
        super().__init__(reader)
        self.folders = dict(folders)
        self.shares = {
            name: share_for_rank(folder, batch_size, reader, rows, first_row) for name, folder in folders.items()
        }
        self.to_sample = to_sample
        self.collate = collate
        self.max_pixels = max_pixels

    @property
    def num_batches(self) -> int:
        """Return the number of batches of this rank; one of no rows, where other ranks have all rows."""
        return max(self.num_own_batches, int(self.reader.world_size > 1))

    @property
    def num_own_batches(self) -> int:
        """Return the number of batches of this rank's rows."""
        return sum(share.num_batches for share in self.shares.values())

    def samples(self, reader: ReaderInfo, log: SkipLog) -> Iterator[list[RankingSample]]:
        """Yield this worker's batches of samples, before they are collated."""
        offset = 0
        for name, folder in self.folders.items():
            share = self.shares[name]
            options = {"offset": offset, "max_pixels": self.max_pixels}
            for samples in ranking_batches(folder, share, self.to_sample, log, reader, **options):
                yield [replace(sample, task=f"{sample.task}/{name}") for sample in samples]
            offset += share.num_batches

    def batches(self, reader: ReaderInfo, epoch: int, log: SkipLog) -> Iterator[Any]:
        if not self.num_own_batches:
            return iter([NoRows()] * (self.num_batches if reader.worker == 0 else 0))
        return (collate_readable(batch, self.collate, sample_key, log)[1] for batch in self.samples(reader, log))


class StreamLoader:
    """The loader that a trainer iterates, with as many batches as `len` gives.

    There are fewer only where bad samples leave an evaluation batch empty. Its state is the number of batches read in
    this pass: a run that resumes within an epoch reads those again, passes them over, and goes on with the batch that
    it would have had.

    Args:
        stream: what to read.
        num_workers: data workers; 0 reads in this process.
        epoch: called at the start of every pass.
        skipped: receives the keys and problems of skipped samples, as workers report them.

    Example:
        >>> loader = StreamLoader(stream, num_workers=2, epoch=lambda: 0, skipped={})  # doctest: +SKIP
        >>> loader.state_dict()  # doctest: +SKIP
        {'taken': 0}
    """

    def __init__(
        self, stream: BatchStream, num_workers: int, epoch: Callable[[], int], skipped: dict[str, str]
    ) -> None:
        self.stream = stream
        self.epoch = epoch
        self.skipped = skipped
        self.batches_read = 0
        self.num_workers = num_workers
        self._resume_at = 0
        self._loader = self.start_workers()

    def start_workers(self) -> DataLoader[Delivery]:
        """Return a loader over the stream as it is now; its workers start with the first pass, and stay."""
        return DataLoader(
            self.stream,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else every pass would take a number from the process's own generator
        )

    def __len__(self) -> int:
        return self.stream.num_batches

    def __iter__(self) -> Iterator[Any]:
        self.stream.epoch.fill_(self.epoch())
        first, self._resume_at = self._resume_at, 0
        batches = enumerate(delivery.batch for delivery in self.deliveries() if delivery.batch is not None)
        for number, batch in batches:
            if number >= first:
                self.batches_read = number + 1
                yield batch

    def deliveries(self) -> Iterator[Delivery]:
        """Yield what the workers hand over. Raises VirtueError where one stopped."""
        for delivery in self._loader:
            self.skipped.update(delivery.skipped)
            if delivery.error is not None:
                raise VirtueError(delivery.error)
            yield delivery

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches read in this pass."""
        return {"taken": self.batches_read}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass begin behind the batches that were read; a pass that was whole begins anew.

        Raises VirtueError for another state than a loader's.
        """
        self._resume_at = self.first_batch(state_dict)

    def first_batch(self, state: Any) -> int:
        """Return the batch that a pass goes on with. Raises VirtueError for another state than a loader's."""
        count = state.get("taken") if isinstance(state, Mapping) else None
        if type(count) is not int or count < 0:
            raise VirtueError(f"found {str(state)[:80]} in a checkpoint, expected a loader's number of batches read")
        return count % max(1, len(self))
