"""The partition of evaluation: every row of a folder exactly once, over any number of ranks and data workers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import cast

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.pipeline import ReaderInfo, ToSample, record_samples
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import RankingSample


@dataclass(frozen=True)
class Share:
    """The rows of one folder that one rank evaluates, cut into batches.

    A rank has consecutive images, whole, and batches hold consecutive rows. All ranks have equally many batches, as
    nearly equal in size as possible, as long as there are rows for them.

    Example:
        >>> share = Share(row_starts=(0, 2, 3, 5), bounds=(0, 3, 5))
        >>> share.num_batches, share.batch_of(row=3)
        (2, 1)
    """

    row_starts: tuple[int, ...]
    """The first row of each image, and the number of rows."""
    bounds: tuple[int, ...]
    """The first row of each batch, and the end of the last."""

    @property
    def num_batches(self) -> int:
        """Return the number of batches."""
        return len(self.bounds) - 1

    def batch_of(self, row: int) -> int:
        """Return the batch of a row of the folder; less than 0 or `num_batches` and more for other ranks' rows."""
        return bisect_right(self.bounds, row) - 1 if row < self.bounds[-1] else self.num_batches

    def touches(self, first_image: int, end_image: int, batches: frozenset[int]) -> bool:
        """Return whether a row of these images is in one of `batches`."""
        first, last = self.row_starts[first_image], self.row_starts[end_image] - 1
        return not batches.isdisjoint(range(self.batch_of(first), self.batch_of(last) + 1))

    def is_in(self, batches: frozenset[int], first_row: int, position: int) -> bool:
        """Return whether the row at `position` of the record that begins at `first_row` is in one of `batches`."""
        return self.batch_of(first_row + position) in batches


def share_for_rank(
    folder: ShardFolder, batch_size: int, reader: ReaderInfo, rows: int | None = None, first_row: int = 0
) -> Share:
    """Return the share of the reader's rank.

    It is of the whole folder, or of its first images, as many as have at most `rows` rows, and of those from the image
    whose first row is `first_row`.
    """
    counts = [count for shard in folder.manifest.shards for count in shard.rows_per_image]
    starts = tuple(accumulate(counts, initial=0))
    end = starts[-1] if rows is None else starts[bisect_right(starts, rows) - 1]
    ranks = range(reader.world_size + 1)
    length = end - first_row
    cuts = [starts[bisect_left(starts, first_row + length * rank // reader.world_size)] for rank in ranks]
    num_batches = max(-(-(end - start) // batch_size) for start, end in pairwise(cuts))
    first, length = cuts[reader.rank], cuts[reader.rank + 1] - cuts[reader.rank]
    return Share(
        starts, tuple(sorted({first + length * batch // max(1, num_batches) for batch in range(num_batches + 1)}))
    )


def ranking_batches(
    folder: ShardFolder,
    share: Share,
    to_sample: ToSample,
    log: SkipLog,
    reader: ReaderInfo,
    *,
    offset: int,
    max_pixels: int,
) -> Iterator[list[RankingSample]]:
    """Yield this worker's batches of `share`, in order: those whose number, counted from `offset`, falls to it.

    A batch lacks its bad samples, and may thus be empty.
    """
    mine = [batch for batch in range(share.num_batches) if (offset + batch) % reader.num_workers == reader.worker]
    numbered = numbered_samples(folder, share, frozenset(mine), to_sample, log, max_pixels)
    groups = groupby(numbered, key=lambda pair: share.batch_of(pair[0]))
    ready = next(groups, None)
    for batch in mine:
        if ready is not None and ready[0] == batch:
            yield [sample for _, sample in ready[1]]
            ready = next(groups, None)
        else:
            yield []


def numbered_samples(
    folder: ShardFolder, share: Share, batches: frozenset[int], to_sample: ToSample, log: SkipLog, max_pixels: int
) -> Iterator[tuple[int, RankingSample]]:
    """Yield the samples of the given batches, each with its row's number in the folder.

    Other images are not decoded, other shards not opened.
    """
    starts = share.row_starts
    for first, shard in zip(
        accumulate((s.images for s in folder.manifest.shards), initial=0), folder.manifest.shards, strict=False
    ):
        if not share.touches(first, first + shard.images, batches):
            continue
        for record in read_shards([{"url": str(folder.path / shard.name)}], folder, log):
            if not share.touches(record.index, record.index + 1, batches):
                continue
            start = starts[record.index]
            wanted = partial(share.is_in, batches, start)
            for position, sample in record_samples(record, to_sample, log, max_pixels, wanted):
                yield start + position, cast(RankingSample, sample)
