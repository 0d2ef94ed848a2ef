"""The table of rows that a conversion leaves out, by reason, as `shards` and `doctor` print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

FIRST = 3
"""Number of rows that the table names for each reason."""


@dataclass(frozen=True)
class LeftOut:
    """The rows that are left out of one folder of shards.

    Example:
        >>> left_out = LeftOut("train", 3, {"box without area": 1}, [("train/2", "box without area: [1, 2, 0, 4]")])
        >>> left_out.share, left_out.first("box without area")
        (0.25, ['train/2: [1, 2, 0, 4]'])
    """

    name: str
    rows: int
    """Number of rows that are not left out."""
    counts: Mapping[str, int]
    """Number of rows left out, by reason."""
    named: Sequence[tuple[str, str]]
    """Key and problem of some of them; the problem's words before ":" are the reason."""

    @property
    def total(self) -> int:
        """Return the number of rows left out."""
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Return the share of all rows that is left out."""
        return self.total / max(self.rows + self.total, 1)

    def first(self, reason: str) -> list[str]:
        """Return the first rows of a reason, with what was found."""
        split = [(key, *problem.partition(":")[::2]) for key, problem in self.named]
        found = [(key, detail.strip()) for key, why, detail in split if why == reason][:FIRST]
        return [f"{key}: {detail}" for key, detail in sorted(found, key=lambda row: (len(row[0]), row[0]))]


def left_out_table(folders: Sequence[LeftOut]) -> Table | None:
    """Return a table with one row for each reason of a folder; None where nothing is left out."""
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        "folder",
        Column("left out because", overflow="fold"),
        Column("rows", justify="right"),
        Column("first rows", overflow="fold"),
        title="rows left out",
    )
    for folder in folders:
        for reason, count in sorted(folder.counts.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(escape(folder.name), escape(reason), f"{count:,}", escape("\n".join(folder.first(reason))))
    return table if table.row_count else None


def describe_excess(folder: LeftOut, allowed: float) -> str:
    """Return what is wrong where more than the allowed share, or every row, is left out; "" where nothing is."""
    if not folder.total or (folder.rows and folder.share <= allowed):
        return ""
    count = f"{folder.name}: {folder.total:,} of {folder.rows + folder.total:,} rows are left out"
    if not folder.rows:
        return f"{count}, that is all: mend the rows, then remove the folder of shards"
    found = f"{count} ({folder.share:.1%}), more than --max-left-out {allowed:g} allows"
    return f"{found}: mend the rows and remove the folder of shards, or allow more with --max-left-out"
