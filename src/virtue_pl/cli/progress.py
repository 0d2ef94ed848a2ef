"""Progress on the terminal that several commands share: bars, and a line on what is being loaded."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

if TYPE_CHECKING:
    from rich.status import Status

    from virtue_pl.data.conversion.source_file import Advance

PATIENCE = 1.0
"""Seconds of loading after which a command says what it loads."""


@contextmanager
def show_progress(name: str, rows: int) -> Iterator[Advance]:
    """Show a bar while a dataset is converted; gives a function that advances it by a number of rows."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(f"shards of {name}", total=rows)
        yield lambda done: progress.advance(task, done)


@contextmanager
def show_rate(total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar with counts, documents per second and the time left on stderr; gives what advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn("{task.percentage:>3.0f}%", show_speed=False),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("encoding", total=total, rate="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            speed = progress.tasks[0].speed
            progress.update(task, rate="" if speed is None else f"{speed:,.1f}/s")

        yield advance


class LoadingLine:
    """A line on stderr that says what is being loaded, from `PATIENCE` seconds on until it is; none in a pipe or file.

    What is logged meanwhile stands above it. `start` and `stop` do what entering and leaving it as a context does.
    Python's garbage collector, which else looks through all that is loaded again and again, waits until loading has
    ended: that is a tenth of the time.

    Example:
        >>> with LoadingLine("the model"):
        ...     import json
    """

    _active: ClassVar[LoadingLine | None] = None

    def __init__(self, what: str) -> None:
        self.what = what
        self._lock = Lock()
        self._timer: Timer | None = None
        self._status: Status | None = None
        self._collected = False
        """Whether the garbage collector ran before, and is to run again."""

    def __enter__(self) -> LoadingLine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @classmethod
    def stop_active(cls) -> None:
        """Stop the line that was started last, as behind an error."""
        if cls._active is not None:
            cls._active.stop()

    def start(self) -> LoadingLine:
        """Show the line from `PATIENCE` seconds on, in the stead of another one; returns it."""
        self.stop_active()
        LoadingLine._active = self
        self._collected = gc.isenabled()
        gc.disable()
        if sys.stderr.isatty():
            self._timer = Timer(PATIENCE, self._start_status)
            self._timer.daemon = True
            self._timer.start()
        return self

    def stop(self) -> None:
        """Remove the line, where it is shown."""
        if self._collected:
            self._collected = False
            gc.enable()
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._status is not None:
                shown = sys.stderr
                self._status.stop()
                send_logs(shown, sys.stderr)
                self._status = None

    def _start_status(self) -> None:
        """Show the line, unless loading has ended."""
        from rich.console import Console

        with self._lock:
            if self._timer is not None:
                before = sys.stderr
                self._status = Console(stderr=True).status(f"loading {self.what}")
                self._status.start()  # it puts what is written to sys.stderr above itself
                send_logs(before, sys.stderr)


def send_logs(before: TextIO, after: TextIO) -> None:
    """Have every logger that writes to one stream write to another."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers: list[Any] = [handler for logger in loggers for handler in getattr(logger, "handlers", ())]
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)
