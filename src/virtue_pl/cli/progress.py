"""Progress bars on the terminal that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtue_pl.data.conversion.source_file import Advance


@contextmanager
def show_progress(name: str, rows: int) -> Iterator[Advance]:
    """Show a bar while a dataset is converted; gives a function that advances it by a number of rows."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(f"shards of {name}", total=rows)
        yield lambda done: progress.advance(task, done)
