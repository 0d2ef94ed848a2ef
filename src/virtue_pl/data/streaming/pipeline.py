"""Shards to samples: the stages of the stream, as plain generators, and how they treat bad input."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import Record, RecordImage, Row
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.shard_reader import read_shards
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


def derive_seed(*parts: int | str) -> int:
    """Return one seed from several plain values, the same in every process, and unlike those of similar values.

    Only numbers and strings are allowed: their text is hashed, and a class's own would change with its name.
    """
    return hash_seed(repr(parts))


def derive_reader_seed(seed: int, epoch: int, reader: ReaderInfo, *extra: int) -> int:
    """Return one seed for a reader in an epoch, and for a batch of it where `extra` numbers one.

    The text that is hashed is fixed: another text would be another shuffle.
    """
    ranks = f"rank={reader.rank}, world={reader.world_size}"
    text = f"Place({ranks}, worker={reader.worker}, workers={reader.num_workers})"
    return hash_seed(f"({', '.join([str(seed), str(epoch), text, *map(str, extra)])})")


def hash_seed(text: str) -> int:
    """Return 48 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


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


def draw_negatives(samples: Iterable[Sample], count: int, seed: int, required: bool = True) -> Iterator[Sample]:
    """Yield each sample with `count` of its hard negatives, drawn anew each time without replacement.

    One that has fewer raises VirtueError, or, where they are not `required`, gives those that it has.
    """
    generator = random.Random(seed)
    for sample in samples:
        if required and len(sample.negatives) < count:
            raise VirtueError(
                f"{sample.key} has {len(sample.negatives)} hard negatives, fewer than num_negatives = {count}: lower"
                " num_negatives"
            )
        yield replace(sample, negatives=tuple(generator.sample(sample.negatives, min(count, len(sample.negatives)))))


def distinct_batches(samples: Iterable[Sample], sizes: Iterable[int], patience: int) -> Iterator[list[Sample]]:
    """Yield batches of the given sizes in which no key occurs twice: a repeat is dropped, it will come again.

    A sample with the same target as another in the batch waits for the next batch, as long as no more than `size` wait.
    Raises VirtueError after `patience` repeats in a row: there are fewer different samples than a batch holds.
    """
    source = iter(samples)
    waiting: deque[Sample] = deque()
    for size in sizes:
        batch: dict[str, Sample] = {}
        targets: set[tuple[str, tuple[str, ...]]] = set()
        later: deque[Sample] = deque()
        repeats = 0
        while len(batch) < size:
            sample = waiting.popleft() if waiting else next(source, None)
            if sample is None:
                return
            target = (sample.target.text, sample.target.image_keys)
            if sample.key in batch:
                repeats += 1
                if repeats > patience:
                    raise VirtueError(
                        f"only {len(batch)} different samples could be read, batch_size is {size}: lower batch_size"
                    )
            elif target in targets and len(later) < size:
                later.append(sample)
            else:
                batch[sample.key] = sample
                targets.add(target)
                repeats = 0
        later.extend(waiting)
        waiting = later
        yield list(batch.values())


def consecutive_batches(samples: Iterable[Sample], sizes: Iterable[int]) -> Iterator[list[Sample]]:
    """Yield batches of the given sizes of the samples as they come, until they end within one."""
    source = iter(samples)
    for size in sizes:
        batch = list(islice(source, size))
        if len(batch) < size:
            return
        yield batch


@dataclass(frozen=True)
class TrainingSource:
    """One dataset's training samples, and how they are drawn.

    Example:
        >>> source = data.training_source(seed=0)  # doctest: +SKIP
        >>> next(training_samples(source, SkipLog(BadSampleLimits()), ReaderInfo(), epoch=0)).key  # doctest: +SKIP
        'SCAR_mini/7'
    """

    folder: ShardFolder
    to_sample: ToSample
    sampling: SamplingOptions
    seed: int
    max_pixels: int
    """Larger images count as bad."""

    def batches(self, samples: Iterable[Sample], sizes: Iterable[int]) -> Iterator[list[Sample]]:
        """Yield batches of the given sizes of `training_samples`, distinct ones where `sampling` says so."""
        if not self.sampling.distinct:
            return consecutive_batches(samples, sizes)
        return distinct_batches(samples, sizes, patience=20 * self.folder.manifest.rows)


def training_samples(source: TrainingSource, log: SkipLog, reader: ReaderInfo, epoch: int) -> Iterator[Sample]:
    """Return an endless seeded stream of samples, the same for the same arguments.

    Readers take different shards from one sequence.
    """
    folder, sampling = source.folder, source.sampling
    own = derive_reader_seed(source.seed, epoch, reader)
    paths, order = [str(path) for path in folder.paths], derive_seed(source.seed, epoch)
    buffer = max(1, min(sampling.shuffle_buffer, folder.manifest.images))
    stages = wds.DataPipeline(
        lambda: islice(endless_shards(paths, order), reader.reader_id, None, reader.num_readers),
        lambda shards: read_shards(shards, folder, log),
        wds.detshuffle(buffer, initial=buffer, seed=own),
        lambda records: samples_of(records, source, log),
        wds.detshuffle(sampling.sample_buffer, initial=sampling.sample_buffer, seed=own + 1),
        lambda samples: draw_negatives(samples, sampling.num_negatives, own, sampling.negatives_required),
    )
    return iter(stages)


def samples_of(records: Iterable[Record], source: TrainingSource, log: SkipLog) -> Iterator[Sample | RankingSample]:
    """Yield the samples of every record, in order."""
    for record in records:
        for _, sample in record_samples(record, source.to_sample, log, source.max_pixels):
            yield sample


def endless_shards(paths: Sequence[str], seed: int) -> Iterator[dict[str, str]]:
    """Yield all shards in a new order, again and again.

    With `webdataset.ResampledShards`, which draws with replacement, an epoch would miss a third of them.
    """
    generator = random.Random(seed)
    while True:
        yield from ({"url": path} for path in generator.sample(paths, len(paths)))
