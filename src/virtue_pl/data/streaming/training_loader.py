"""The loader of a training stream, which goes on where it was stopped without reading what was passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from virtue_pl.data.streaming.loader import StreamLoader
from virtue_pl.data.streaming.training_stream import Cursor, PlannedStream


class TrainingLoader(StreamLoader):
    """The loader of a `PlannedStream`: a pass begins where the last one ended.

    Its state is the number of batches read in this pass, and the stream's place behind them, which is plain numbers: a
    run that resumes, with any number of workers or ranks, goes on with the rows that are left.

    Args:
        stream: what to read.
        num_workers: data workers; 0 reads in this process.
        epoch: called at the start of every pass. The epoch behind the last pass goes on where that ended, another one
            begins where it would after whole epochs, and the same one again where it began.
        skipped: receives the keys and problems of skipped samples, as workers report them.

    Example:
        >>> loader = TrainingLoader(stream, num_workers=2, epoch=lambda: 0, skipped={})  # doctest: +SKIP
        >>> loader.state_dict()  # doctest: +SKIP
        {'taken': 0, 'cursor': {'step': 0, 'plans': {}}}
    """

    stream: PlannedStream

    def __init__(
        self, stream: PlannedStream, num_workers: int, epoch: Callable[[], int], skipped: dict[str, str]
    ) -> None:
        super().__init__(stream, num_workers, epoch, skipped)
        self._ledger = stream.copy()
        self._start = Cursor()
        self._first = 0
        self._epoch: int | None = None
        self._is_whole = False
        self._resumed: tuple[Cursor | None, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch()
        start, first, goes_on = self._begin(epoch)
        self._start, self._first, self._epoch, self._is_whole = start, first, epoch, False
        self.batches_read = first
        self.stream.end.fill_(start.step + len(self) - first)
        if not goes_on:
            self.stream.cursor = start
            self._loader = self.start_workers()
        for delivery in self.deliveries():
            if delivery.batch is not None:
                self.batches_read += 1
                yield delivery.batch
        self._is_whole = True

    def _begin(self, epoch: int) -> tuple[Cursor, int, bool]:
        """Return where a pass begins, the number of its first batch, and whether that is where the workers are."""
        if self._resumed is not None:
            (cursor, first), self._resumed = self._resumed, None
            return cursor or self._ledger.advance(self._ledger.start_of(epoch), first), first, False
        if self._epoch is None or epoch not in (self._epoch, self._epoch + 1):
            return self._ledger.start_of(epoch), 0, False
        if epoch == self._epoch:
            return self._start, 0, False
        return self.cursor(), 0, self._is_whole

    def cursor(self) -> Cursor:
        """Return the stream's place behind the batches that were read."""
        if self._resumed is not None and self._resumed[0] is not None:
            return self._resumed[0]
        reached, step = self._ledger.cursor, self._start.step + self.batches_read - self._first
        if not self._start.step <= reached.step <= step:  # of another pass, or before a checkpoint of other sizes
            reached = self._start
        return self._ledger.advance(reached, step - reached.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches read in this pass, and the stream's place behind them."""
        return {"taken": self.batches_read, "cursor": self.cursor().to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass begin behind the batches that were read; a pass that was whole begins anew.

        Raises VirtueError for another state than a loader's.
        """
        first = self.first_batch(state_dict)
        self._resumed = (Cursor.from_json(state_dict["cursor"]) if "cursor" in state_dict else None, first)
