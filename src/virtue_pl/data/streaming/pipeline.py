"""Shards to samples: the stages of the stream, as plain generators, and how they treat bad input."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import Record, RecordImage, Row
from virtue_pl.data.shards.target_index import read_targets
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.row_plan import RowOrder, RowPlan
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import DataError, RankingSample, Sample, VirtueError

ToSample = Callable[[Row, Sequence[RecordImage]], Sample | RankingSample]


@dataclass(frozen=True)
class ReaderInfo:
    """The position of one of the parallel readers, and its limits of bad samples.

    Example:
        >>> ReaderInfo(rank=1, world_size=2).in_worker(0, 4).reader_id
        4
    """

    rank: int = 0
    world_size: int = 1
    """Number of ranks."""
    worker: int = 0
    """Index among the rank's data workers; 0 also where the rank's own process reads."""
    num_workers: int = 1
    """Number of processes that read for the rank: at least 1."""
    limits: BadSampleLimits = field(default_factory=BadSampleLimits)

    @property
    def reader_id(self) -> int:
        """Return the index of this reader among those of all ranks."""
        return self.rank * self.num_workers + self.worker

    @property
    def num_readers(self) -> int:
        """Return the number of readers of all ranks."""
        return self.world_size * self.num_workers

    def in_worker(self, worker: int, num_workers: int) -> ReaderInfo:
        """Return the same rank's reader in one of its data workers."""
        return replace(self, worker=worker, num_workers=num_workers)


def record_samples(
    record: Record, to_sample: ToSample, log: SkipLog, max_pixels: int, wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, Sample | RankingSample]]:
    """Yield the record's samples, each with its row's position in it; `wanted` selects rows by position.

    All share the images, which are decoded once. A bad image counts once, and the rows that use it are left out.
    """
    images = record.images(max_pixels)
    bad: set[str] = set()
    for position, row in enumerate(record.rows):
        if wanted is not None and not wanted(position):
            continue
        try:
            sample = to_sample(row, images)
        except DataError as error:
            if error.key not in bad:
                log.skip(error)
            bad.add(error.key)
        else:
            log.reset_consecutive()
            yield position, sample


def draw_negatives(sample: Sample, count: int, seed: int, required: bool = True) -> Sample:
    """Return the sample with `count` of its hard negatives, drawn without replacement.

    One that has fewer raises VirtueError, or, where they are not `required`, keeps those that it has.
    """
    if required and len(sample.negatives) < count:
        raise VirtueError(
            f"{sample.key} has {len(sample.negatives)} hard negatives, fewer than num_negatives = {count}: lower"
            " num_negatives"
        )
    drawn = random.Random(seed).sample(sample.negatives, min(count, len(sample.negatives)))
    return replace(sample, negatives=tuple(drawn))


@dataclass(frozen=True)
class TrainingSource:
    """One dataset's training samples, and how they are drawn.

    Example:
        >>> source = data.training_source(seed=0)  # doctest: +SKIP
        >>> len(source.plan().take(8))  # doctest: +SKIP
        8
    """

    folder: ShardFolder
    to_sample: ToSample
    sampling: SamplingOptions
    seed: int
    max_pixels: int
    """Larger images count as bad."""

    def partner(self, row: int, seed: int) -> int:
        """Return the row that a row's sample is joined with; of a dataset without pairs of rows it is the row itself.

        seed: of what is random in it.
        """
        return row

    def join(self, sample: Sample, partner: Sample) -> Sample:
        """Return the training sample of a row and its partner, given the sample of each alone."""
        return sample

    def describe_rows(self) -> str:
        """Return the number of rows, the beginning of their shards' fingerprint, and that of their order, in words.

        A place in the rows means the same wherever this text is the same.
        """
        first = RowOrder(self.folder, self.sampling, self.seed).rows_of_pass(0)
        order = hashlib.sha256(first.tobytes() + bytes([self.sampling.distinct])).hexdigest()
        return f"{len(first)} of shards {self.folder.manifest.fingerprint[:8]} in order {order[:8]}"

    def plan(self) -> RowPlan:
        """Return the plan of which rows come when, from the first pass on."""
        order = RowOrder(self.folder, self.sampling, self.seed)
        return RowPlan(order, read_targets(self.folder) if self.sampling.distinct else None)
