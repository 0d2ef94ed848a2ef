"""Training batches whose rows are planned by numbers, and read one batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from virtue_pl.data.streaming.loader import BatchStream, sample_key
from virtue_pl.data.streaming.pipeline import ReaderInfo, TrainingSource, draw_negatives, record_samples
from virtue_pl.data.streaming.readable_samples import collate_readable, require_batch
from virtue_pl.data.streaming.record_reader import RecordReader
from virtue_pl.data.streaming.row_plan import PlanState, RowPlan, is_count
from virtue_pl.data.streaming.seeds import derive_seed
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import Sample, VirtueError

SUBSTITUTES = 20
"""Rows that are tried, for each that cannot be read, to fill its place in a batch."""


@dataclass(frozen=True)
class Cursor:
    """A place in a training stream: the number of steps before it, and how far the plan of each dataset has come.

    Example:
        >>> Cursor(step=7).to_json()
        {'step': 7, 'plans': {}}
    """

    step: int = 0
    plans: Mapping[str, PlanState] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the place as plain values, for a checkpoint."""
        return {"step": self.step, "plans": {name: state.to_json() for name, state in self.plans.items()}}

    @classmethod
    def from_json(cls, content: Any) -> Cursor:
        """Return the place that `to_json` gave. Raises VirtueError for anything else."""
        found = content if isinstance(content, Mapping) else {}
        if not is_count(found.get("step")) or not isinstance(found.get("plans"), Mapping):
            raise VirtueError(f"found {str(content)[:80]} in a checkpoint, expected a place in the training stream")
        return cls(found["step"], {name: PlanState.from_json(state) for name, state in found["plans"].items()})


class PlannedStream(BatchStream):
    """Training batches, `steps` for a rank and epoch, whose rows are decided for all ranks before anything is read.

    Every process plans the batches of all ranks and reads its own, so that all see one sequence: what a batch holds
    depends on the seed, the step, the rank, the number of ranks and the sizes of batches, and not on workers or shards.

    Args:
        sources: each dataset, with a seed of its own.
        collate: `Collator.collate_train`; torch's generator is seeded anew for each of its calls.
        steps: batches of an epoch.
        seed: of what is random in a sample: negatives, and prompts drawn by `collate`.
        reader: see `BatchStream`.

    Example:
        >>> class Alone(PlannedStream):
        ...     def sizes(self, step):
        ...         return {"scar": 8}
        >>> stream = Alone({"scar": source}, list, steps=10, seed=0, reader=ReaderInfo())  # doctest: +SKIP
    """

    def __init__(
        self,
        sources: Mapping[str, TrainingSource],
        collate: Callable[[Sequence[Sample]], Any],
        *,
        steps: int,
        seed: int,
        reader: ReaderInfo,
    ) -> None:
        super().__init__(reader)
        self.sources = dict(sources)
        self.collate = collate
        self.steps = steps
        self.seed = seed
        self.cursor = Cursor()
        """Position of this process's plans, or the one that they go on from."""
        self.end = torch.zeros((), dtype=torch.long).share_memory_()
        """The step at which a pass ends, in shared memory as `epoch` is."""
        self._plans: dict[str, RowPlan] = {}

    @property
    def num_batches(self) -> int:
        return self.steps

    @abstractmethod
    def sizes(self, step: int) -> dict[str, int]:
        """Return how many samples of each dataset are in the batch of a step, in the batch's order."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the plans, which a worker makes for itself from the cursor."""
        return self.__dict__ | {"_plans": {}}

    def copy(self) -> PlannedStream:
        """Return the same stream with plans of its own."""
        return copy(self)

    def plans(self) -> dict[str, RowPlan]:
        """Return the plans at the cursor."""
        if not self._plans:
            self._plans = {name: source.plan() for name, source in self.sources.items()}
        for name, plan in self._plans.items():
            wanted = self.cursor.plans.get(name, PlanState())
            if plan.state != wanted:
                plan.restore(wanted)
        return self._plans

    def advance(self, cursor: Cursor, steps: int) -> Cursor:
        """Return the place `steps` steps behind `cursor`, without reading anything."""
        if not steps:
            return cursor
        self.cursor = cursor
        plans = self.plans()
        for step in range(cursor.step, cursor.step + steps):
            for _ in range(self.reader.world_size):
                for name, size in self.sizes(step).items():
                    plans[name].take(size)
        self.cursor = self._cursor_at(plans, cursor.step + steps)
        return self.cursor

    def start_of(self, epoch: int) -> Cursor:
        """Return where an epoch begins, if every epoch before it was whole."""
        return self.advance(Cursor(), epoch * self.steps)

    def planned(self, reader: ReaderInfo, last: int) -> Iterator[tuple[int, dict[str, list[int]]]]:
        """Yield this worker's steps from the cursor on, up to step `last`, each with the rows of its batch.

        The first step falls to the first worker, and so on in turn. Behind them the cursor is at `last`.
        """
        plans, first = self.plans(), self.cursor.step
        for step in range(first, last):
            for rank in range(reader.world_size):
                rows = {name: plans[name].take(size) for name, size in self.sizes(step).items()}
                if rank == reader.rank and (step - first) % reader.num_workers == reader.worker:
                    found = rows
            if (step - first) % reader.num_workers == reader.worker:
                yield step, found
        self.cursor = self._cursor_at(plans, last)

    def samples(self, reader: ReaderInfo, log: SkipLog, last: int | None = None) -> Iterator[list[Sample]]:
        """Yield this worker's batches of samples from the cursor on, before they are collated."""
        return (samples for _, samples in self.numbered_samples(reader, log, last))

    def numbered_samples(
        self, reader: ReaderInfo, log: SkipLog, last: int | None = None
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield step and samples of this worker's batches; the epoch ends with step `last`."""
        end = self.cursor.step + self.steps if last is None else last
        readers = {name: RecordReader(source.folder, log) for name, source in self.sources.items()}
        try:
            for step, rows in self.planned(reader, end):
                seed = derive_seed(self.seed, step, reader.rank)
                yield (
                    step,
                    [
                        sample
                        for name in rows
                        for sample in self.read_block(name, readers[name], rows[name], derive_seed(seed, name), log)
                    ],
                )
        finally:
            for each in readers.values():
                each.close()

    def read_block(self, name: str, reader: RecordReader, rows: Sequence[int], seed: int, log: SkipLog) -> list[Sample]:
        """Return the samples of some rows of a dataset, with others in place of those that cannot be read."""
        found = self.read_rows(name, reader, rows, seed, log)
        plan, random = self._plans[name], np.random.RandomState(seed % 2**32)
        tried, digests = set(rows), plan.targets
        targets = set() if digests is None else {int(digests[row]) for row in found}
        for _ in range(SUBSTITUTES * (len(rows) - len(found))):
            if len(found) == len(rows) or len(tried) == plan.num_usable:
                break
            row = int(random.randint(len(plan)))
            if not plan.usable[row] or row in tried or (digests is not None and int(digests[row]) in targets):
                continue
            tried.add(row)
            found |= self.read_rows(name, reader, [row], seed, log)
        return list(found.values())

    def read_rows(
        self, name: str, reader: RecordReader, rows: Sequence[int], seed: int, log: SkipLog
    ) -> dict[int, Sample]:
        """Return the samples of some rows, by row, in order; each image is read once, the bad ones are skipped."""
        source = self.sources[name]
        partners = {row: source.partner(row, derive_seed(seed, row, "partner")) for row in rows}
        found = self.read_alone(name, reader, list(dict.fromkeys([*rows, *partners.values()])), log)
        count, required = source.sampling.num_negatives, source.sampling.negatives_required
        return {
            row: draw_negatives(source.join(found[row], found[partner]), count, derive_seed(seed, row), required)
            for row, partner in partners.items()
            if row in found and partner in found
        }

    def read_alone(self, name: str, reader: RecordReader, rows: Sequence[int], log: SkipLog) -> dict[int, Sample]:
        """Return the sample of each row by itself, by row; each image is read once, the bad ones are skipped."""
        source, order = self.sources[name], self._plans[name].order
        located = {row: order.locate(row) for row in rows}
        wanted: dict[tuple[int, int], list[int]] = {}
        for row, (shard, number, _) in located.items():
            wanted.setdefault((shard, number), []).append(row)
        found: dict[int, Any] = {}
        for (shard, number), its_rows in wanted.items():
            record = reader.read(shard, number)
            if record is None:
                continue
            positions = {located[row][2]: row for row in its_rows}
            for position, sample in record_samples(
                record, source.to_sample, log, source.max_pixels, positions.__contains__
            ):
                found[positions[position]] = sample
        return found

    def batches(self, reader: ReaderInfo, epoch: int, log: SkipLog) -> Iterator[Any]:
        for step, samples in self.numbered_samples(reader, log, int(self.end)):
            seeded = partial(collate_seeded, self.collate, derive_seed(self.seed, step, reader.rank))
            yield require_batch(collate_readable(samples, seeded, sample_key, log)[1], log)

    def _cursor_at(self, plans: Mapping[str, RowPlan], step: int) -> Cursor:
        return Cursor(step, {name: plan.state for name, plan in plans.items()})


class TrainingStream(PlannedStream):
    """Training batches of one dataset, `steps` for a rank and epoch.

    Args:
        source: the dataset, and how its samples are drawn.
        collate: `Collator.collate_train`; torch's generator is seeded anew for each of its calls.
        batch_size: samples of a batch.
        steps: batches of an epoch.
        reader: see `BatchStream`.

    Example:
        >>> stream = TrainingStream(data.training_source(seed=0), model.collator.collate_train, batch_size=8, steps=10,
        ...     reader=ReaderInfo())  # doctest: +SKIP
        >>> len(list(stream.samples(ReaderInfo(), stream.log)))  # doctest: +SKIP
        10
    """

    def __init__(
        self,
        source: TrainingSource,
        collate: Callable[[Sequence[Sample]], Any],
        *,
        batch_size: int,
        steps: int,
        reader: ReaderInfo,
    ) -> None:
        super().__init__({"": source}, collate, steps=steps, seed=source.seed, reader=reader)
        self.batch_size = batch_size

    def sizes(self, step: int) -> dict[str, int]:
        """Return the batch's size, the same in each step."""
        return {"": self.batch_size}


def collate_seeded(collate: Callable[[Sequence[Any]], Any], seed: int, samples: Sequence[Any]) -> Any:
    """Return the batch as `collate` returns it with torch's generator seeded so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return collate(samples)
