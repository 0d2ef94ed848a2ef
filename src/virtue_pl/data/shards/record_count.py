"""The count of a shard's records while it is read, so that one which ends early is not taken for a whole one."""

from __future__ import annotations

from typing import NoReturn

from virtue_pl.data.shards.manifest import MANIFEST, ShardFolder
from virtue_pl.types import VirtueError


class RecordCount:
    """A count of the records of one shard, each of which must be one that its manifest says, with as many rows.

    It costs no reading: a tar that was cut between two records, whose header was overwritten, or that is another shard
    of the same length, is found by the numbers of its records.

    Args:
        folder: the folder of the shard.
        name: the shard.

    Example:
        >>> count = RecordCount(folder, "shard-000000.tar")  # doctest: +SKIP
        >>> count.add("000000000", rows=2)  # doctest: +SKIP
        >>> count.check_complete()  # doctest: +SKIP
    """

    def __init__(self, folder: ShardFolder, name: str) -> None:
        self.path = folder.path / name
        self.rows_per_image = folder.shard(name).rows_per_image
        self.first = folder.first_record(name)
        self.may_hold_more = folder.may_hold_more(name)
        self.found: set[int] = set()

    def is_beyond(self, key: str) -> bool:
        """Return whether a record's key is beyond those of a manifest that was cut: the rest is not read."""
        return self.may_hold_more and key.isdecimal() and int(key) >= self.first + len(self.rows_per_image)

    def add(self, key: str, rows: int | None = None) -> None:
        """Count a record by its key, with its number of rows; None for one that cannot be read.

        Raises VirtueError for one that the manifest does not have here, or has with another number of rows, and for one
        that came before.
        """
        number = int(key) - self.first if key.isdecimal() else -1
        if not 0 <= number < len(self.rows_per_image):
            last = self.first + len(self.rows_per_image) - 1
            self.fail(f"found record {key}, expected {self.first:09d} to {last:09d}")
        if number in self.found:
            self.fail(f"record {key} is in it twice")
        if rows is not None and rows != self.rows_per_image[number]:
            self.fail(f"record {key} has {rows} rows, expected {self.rows_per_image[number]}")
        self.found.add(number)

    def check_complete(self) -> None:
        """Raise VirtueError where the shard ended before all its records were found."""
        if len(self.found) != len(self.rows_per_image):
            self.fail("it ends early")

    def fail(self, problem: str) -> NoReturn:
        """Raise VirtueError for a shard that is not the one of its manifest."""
        raise VirtueError(
            f"{self.path} is not the shard of its {MANIFEST}: {problem}; {len(self.found)} of"
            f" {len(self.rows_per_image)} records were found before: write the shards again, or fetch this one again"
        )
