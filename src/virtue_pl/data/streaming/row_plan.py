"""Plans of the rows that each training batch is made of, decided by numbers alone, before anything is read.

Passes over the rows of a folder follow each other without an end, each in an order of its own: shards at random,
their images shuffled among neighbours, the rows of an image side by side or shuffled in turn. Batches are cut from
that, so that every row comes once before any comes again, whatever the number of shards, workers and ranks. A row whose
target is in the batch already waits for the next batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.row_digests import Digests
from virtue_pl.data.streaming.options import SamplingOptions
from virtue_pl.data.streaming.seeds import derive_seed
from virtue_pl.types import VirtueError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PlanState:
    """Progress of a plan: the pass, how many of its rows were drawn, and the rows that wait.

    Example:
        >>> PlanState(pass_number=1, position=20, waiting=(7,)).to_json()
        {'pass': 1, 'position': 20, 'waiting': [7]}
    """

    pass_number: int = 0
    position: int = 0
    waiting: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain values, for a checkpoint."""
        return {"pass": self.pass_number, "position": self.position, "waiting": list(self.waiting)}

    @classmethod
    def from_json(cls, content: Any) -> PlanState:
        """Return the state that `to_json` gave. Raises VirtueError for anything else."""
        found = content if isinstance(content, Mapping) else {}
        waiting = found.get("waiting")
        numbers = [found.get("pass"), found.get("position"), *(waiting if isinstance(waiting, list) else [None])]
        if not all(map(is_count, numbers)):
            raise VirtueError(f"found {str(content)[:80]} in a checkpoint, expected a place in the training rows")
        return cls(found["pass"], found["position"], tuple(found["waiting"]))


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of 0 or more."""
    return type(value) is int and value >= 0


class RowOrder:
    """The order of a folder's rows in each pass over it.

    Args:
        folder: the shards, of which only the manifest is read.
        sampling: `shuffle_buffer` images are shuffled among each other, then `sample_buffer` rows.
        seed: of all passes.

    Example:
        >>> order = RowOrder(folder, SamplingOptions(), seed=0)  # doctest: +SKIP
        >>> sorted(order.rows_of_pass(3).tolist()) == list(range(folder.manifest.rows))  # doctest: +SKIP
        True
    """

    def __init__(self, folder: ShardFolder, sampling: SamplingOptions, seed: int) -> None:
        self.sampling = sampling
        self.seed = seed
        self.shard_images = np.array([shard.images for shard in folder.manifest.shards], dtype=np.int64)
        counts = [count for shard in folder.manifest.shards for count in shard.rows_per_image]
        self.rows_per_image = np.array(counts, dtype=np.int64)
        self.first_rows = np.concatenate([[0], np.cumsum(self.rows_per_image)]).astype(np.int64)
        self.first_images = np.concatenate([[0], np.cumsum(self.shard_images)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def rows_of_pass(self, number: int) -> Rows:
        """Return the numbers of all rows in the order of one pass."""
        random = np.random.RandomState(derive_seed(self.seed, "pass", number) % 2**32)  # its draws never change
        shards = random.permutation(len(self.shard_images))
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        images = np.concatenate([np.arange(self.first_images[shard], self.first_images[shard + 1]) for shard in shards])
        images = shuffle_in_windows(images, self.sampling.shuffle_buffer, random)
        counts = self.rows_per_image[images]
        ends = np.cumsum(counts)
        rows = np.repeat(self.first_rows[images] - (ends - counts), counts) + np.arange(ends[-1])
        return shuffle_in_windows(rows, self.sampling.sample_buffer, random)

    def locate(self, row: int) -> tuple[int, int, int]:
        """Return a row's shard, the number of its record in the shard, and its position in the record."""
        image = int(np.searchsorted(self.first_rows, row, "right")) - 1
        shard = int(np.searchsorted(self.first_images, image, "right")) - 1
        return shard, image - int(self.first_images[shard]), row - int(self.first_rows[image])


def shuffle_in_windows(values: Rows, size: int, random: np.random.RandomState) -> Rows:
    """Return the values with each run of `size` shuffled; where the runs begin is random, too."""
    if size == 1:
        return values
    if size >= len(values):
        return random.permutation(values)
    offset = int(random.randint(size))
    cuts = [0, *range(offset or size, len(values), size), len(values)]
    return np.concatenate([random.permutation(values[start:end]) for start, end in pairwise(cuts)])


class RowPartners:
    """For each row, the rows of other images with an equal digest, of which one is drawn as its partner.

    Args:
        digests: one a row; a negative one is equal to no other.
        images: the number of each row's image.

    Example:
        >>> partners = RowPartners(np.array([5, 5, 7, 5]), images=np.array([0, 0, 1, 1]))
        >>> partners.usable.tolist(), partners.draw(0, seed=1)
        ([True, True, False, True], 3)
    """

    def __init__(self, digests: Digests, images: Rows) -> None:
        self.digests = digests
        self.images = images
        order = np.argsort(digests, kind="stable")
        _, starts, counts = np.unique(digests[order], return_index=True, return_counts=True)
        self._groups = {
            int(digests[order[start]]): order[start : start + count]
            for start, count in zip(starts, counts, strict=True)
        }
        of_one_image = {digest: len(np.unique(images[rows])) == 1 for digest, rows in self._groups.items()}
        self.usable = np.array([digest >= 0 and not of_one_image[digest] for digest in digests.tolist()], dtype=bool)
        """Which rows have a partner."""

    def draw(self, row: int, seed: int) -> int:
        """Return a row of another image with the digest of a usable row, the same for the same seed."""
        group = self._groups[int(self.digests[row])]
        others = group[self.images[group] != self.images[row]]
        return int(others[np.random.RandomState(seed % 2**32).randint(len(others))])


class RowPlan:
    """The rows of one dataset's batches, taken one batch after the other.

    Args:
        order: of the rows in each pass.
        targets: a digest of each row's target; equal ones are kept apart. None keeps nothing apart: batches are cut as
            rows come.
        state: where to begin.
        usable: which rows are drawn at all; default all.

    Example:
        >>> plan = RowPlan(RowOrder(folder, SamplingOptions(), seed=0), targets)  # doctest: +SKIP
        >>> len(plan.take(8)), plan.state.position  # doctest: +SKIP
        (8, 9)
    """

    def __init__(
        self,
        order: RowOrder,
        targets: Digests | None,
        state: PlanState | None = None,
        usable: NDArray[np.bool_] | None = None,
    ) -> None:
        self.order = order
        self.targets = targets
        self.usable = np.ones(len(order), dtype=bool) if usable is None else usable
        self.num_usable = int(self.usable.sum())
        self.put_off = 0
        """Number of rows that had to wait for another batch."""
        self.restore(state or PlanState())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def state(self) -> PlanState:
        """Return how far the plan has come."""
        return PlanState(self._pass, self._position, tuple(self._waiting))

    def restore(self, state: PlanState) -> None:
        """Go on from a state. Raises VirtueError for one that is behind the folder's last row."""
        count = len(self.order)
        beyond = max(state.position - 1, *state.waiting, -1)
        if beyond >= count:
            raise VirtueError(
                f"the checkpoint goes on with row {beyond} of the training data, which has {count}: it was trained on"
                " other shards; continue with those, or start a new run from its weights"
            )
        self._pass, self._position, self._waiting = state.pass_number, state.position, deque(state.waiting)
        self._rows = self.order.rows_of_pass(self._pass)

    def take(self, size: int) -> list[int]:
        """Return the rows of the next batch, or block of one.

        Raises VirtueError where the folder has fewer rows than that.
        """
        if self.num_usable < size:
            raise VirtueError(
                f"only {self.num_usable} different samples could be read, batch_size is {size}: lower batch_size"
            )
        if self.targets is None:
            return [self._next() for _ in range(size)]
        batch: dict[int, int] = {}
        targets: set[int] = set()
        later: deque[int] = deque()
        digests = self.targets
        while len(batch) < size:
            row = self._waiting.popleft() if self._waiting else self._next()
            target = int(digests[row])
            if row in batch or (target in targets and len(later) < size):
                later.append(row)
            else:
                batch[row] = target
                targets.add(target)
        self.put_off += len(later)
        later.extend(self._waiting)
        self._waiting = later
        return list(batch)

    def _next(self) -> int:
        """Return the next usable row of the passes."""
        while True:
            if self._position == len(self._rows):
                self._pass, self._position = self._pass + 1, 0
                self._rows = self.order.rows_of_pass(self._pass)
            self._position += 1
            row = int(self._rows[self._position - 1])
            if self.usable[row]:
                return row
