"""Samples that the model can read: others are named and skipped, as damaged ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.pipeline import ToSample, TrainingSource, record_samples
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog, skip_summary
from virtue_pl.types import Collator, DataError, RankingSample, Sample, VirtueError

CheckSample = Callable[[Sample | RankingSample], object]
"""Raises DataError for a sample that the model cannot read."""

Item = TypeVar("Item")


def check_source(source: TrainingSource, collator: Collator) -> TrainingSource:
    """Return the source with the collator's check of every sample, if it has one (`check_sample`)."""
    check: CheckSample | None = getattr(collator, "check_sample", None)
    return source if check is None else replace(source, to_sample=partial(checked_sample, source.to_sample, check))


def checked_sample(
    to_sample: ToSample, check: CheckSample, row: Row, images: Sequence[RecordImage]
) -> Sample | RankingSample:
    """Return the sample of a row. Raises DataError for one that means nothing, or that the model cannot read."""
    sample = to_sample(row, images)
    check(sample)
    return sample


def collate_readable(
    items: Sequence[Item], collate: Callable[[Sequence[Item]], Any], key_of: Callable[[Item], str], log: SkipLog
) -> tuple[list[Item], Any]:
    """Return the items that the model can read, and their batch; the others are named and skipped.

    Each is tried alone where the batch of all raises VirtueError; the batch is None where none is left. Raises that
    error where each alone can be read, and any other error as it is.
    """
    found = list(items)
    while found:
        try:
            return found, collate(found)
        except VirtueError as error:
            problems = {key_of(item): problem for item in found if (problem := find_problem(item, collate))}
            if not problems:
                raise error
        for key, problem in problems.items():
            log.skip(DataError(key, problem))
        found = [item for item in found if key_of(item) not in problems]
    return [], None


def find_problem(item: Item, collate: Callable[[Sequence[Item]], Any]) -> str:
    """Return why the model cannot read one item; "" where it can."""
    try:
        collate([item])
    except DataError as error:
        return error.problem
    except VirtueError as error:
        return str(error)
    return ""


def find_first_problems(source: TrainingSource, rows: int) -> tuple[int, dict[str, str]]:
    """Return how many of a source's first rows were read, and the problem of each that cannot be used, by its key.

    Shards that are not on this machine are left alone.
    """
    log, count = SkipLog(BadSampleLimits(rows, rows)), 0
    paths = ({"url": str(path)} for path in source.folder.paths if path.is_file())
    for record in read_shards(paths, source.folder, log):
        samples = record_samples(record, source.to_sample, log, source.max_pixels)
        count += sum(1 for _ in islice(samples, rows - count))
        if count + len(log.problems) >= rows:
            break
    return count + len(log.problems), log.problems


def read_first(
    folder: ShardFolder, to_sample: ToSample, max_pixels: int, rows: int
) -> list[tuple[int, Sample | RankingSample]]:
    """Return up to `rows` first usable samples of a folder, each with its row's position in its record.

    Shards that are not on this machine are left alone.
    """
    log = SkipLog(BadSampleLimits(rows, rows))
    paths = ({"url": str(path)} for path in folder.paths if path.is_file())
    records = read_shards(paths, folder, log)
    return list(islice((sample for one in records for sample in record_samples(one, to_sample, log, max_pixels)), rows))


def require_batch(batch: Any, log: SkipLog) -> Any:
    """Return a training batch. Raises VirtueError where none of its samples can be read: ranks would wait for it."""
    if batch is None:
        raise VirtueError(f"{skip_summary(log.problems)}: no sample of a batch can be read")
    return batch
