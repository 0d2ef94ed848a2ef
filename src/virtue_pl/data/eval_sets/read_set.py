"""The rows of one evaluation set, alike from shards and official files, and the count of those that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from virtue_pl.data.conversion.grouped_parquet import num_rows
from virtue_pl.data.eval_sets.files import SetFiles
from virtue_pl.data.eval_sets.own import rank_all_answers
from virtue_pl.data.eval_sets.rows import RowReader
from virtue_pl.data.eval_sets.shards import shard_rows
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.types import DataError, EvaluationRow, VirtueError

BEYOND_LIMIT = "beyond the limit"
"""Reason for which the rows behind the first ones, where only these are asked for, are left out."""
OTHER_REASON = "left out when the shards were written"
"""Reason of rows whose own the manifest no longer names."""


class SetRows(NamedTuple):
    """The rows of a set that are ranked, and how many of its rows are not.

    Example:
        >>> SetRows([], {"missing image": 2}, total=2).left_out
        {'missing image': 2}
    """

    rows: list[EvaluationRow]
    left_out: dict[str, int]
    """Number of rows by the reason for which they are not ranked."""
    total: int
    """Number of rows of the set's source."""


def read_set(
    files: SetFiles, reader: RowReader, limit: int | None = None, leave_out: bool = False, all_answers: bool = False
) -> SetRows:
    """Return the rows of a set, or of its first `limit` rows, in the order of its source.

    With `all_answers` each ranks the right answers of all of them, instead of its own candidates. A row that cannot be
    ranked, now or when shards were written, is left out and counted; without `leave_out` it raises DataError or
    VirtueError. Raises VirtueError where rows are lost in any other way.
    """
    counts: Counter[str] = Counter()

    def count(error: DataError) -> None:
        counts[reason_of(error)] += 1

    told = count if leave_out else None
    if files.shards is None:
        rows, total = list(reader.read(files, limit, told)), sum(map(num_rows, files.tables))
    else:
        manifest = files.shards.manifest
        total = manifest.rows + sum(manifest.skipped.values())
        earlier = skipped_within(manifest, limit)
        if earlier and not leave_out:
            raise VirtueError(
                f"{files.about.name}: {sum(earlier.values())} of {total} queries are not in the shards"
                f" ({describe_counts(earlier)}; first {': '.join(manifest.skipped_rows[0])}): mend them and write the"
                " shards again, or give --allow-missing to rank the others"
            )
        rows = shard_rows(files, reader, limit, told)
        counts.update(earlier)
        if limit is not None and len(manifest.skipped_rows) < sum(manifest.skipped.values()):
            counts[OTHER_REASON] = min(total, limit) - len(rows) - sum(counts.values())
    beyond = total - min(total, limit if limit is not None else total)
    if len(rows) + sum(counts.values()) + beyond != total:
        raise VirtueError(
            f"{files.about.name}: found {len(rows)} rows, {sum(counts.values())} left out, expected {total - beyond}:"
            " fetch or write its files again"
        )
    counts = Counter({reason: number for reason, number in counts.items() if number})
    if all_answers:
        rows = rank_all_answers(rows)
    return SetRows(rows, dict(counts) | ({BEYOND_LIMIT: beyond} if beyond else {}), total)


def skipped_within(manifest: Manifest, limit: int | None) -> dict[str, int]:
    """Return the rows that were skipped when shards were written by reason; with a limit, those before it.

    Of very many skipped rows the manifest names the first alone: the others before the limit are not among them.
    """
    if limit is None:
        return dict(manifest.skipped)
    named = [problem for key, problem in manifest.skipped_rows if int(key.rpartition("/")[2]) < limit]
    return dict(Counter(problem.partition(":")[0] for problem in named))


def reason_of(error: DataError) -> str:
    """Return the words for which a row is left out: those of the problem before ":"."""
    return error.problem.partition(":")[0]


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return the counts by reason in words.

    Example:
        >>> describe_counts({"missing image": 2, "empty mask": 1})
        '2 missing image, 1 empty mask'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
