"""The cases of a resumed run: how it ends, and what it is made of; all of them, or few that cover every pair."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

SEED = 0
"""Of the covering set."""
EPOCH, STEPS, VALIDATION, SAVING = 5, 17, 4, 2
"""Steps of an epoch and of a run, between validations, and between the checkpoints of a run that is killed."""
STOPS: dict[str, tuple[int, int, int]] = {
    "a step": (1, 6, 12),
    "within an epoch": (3, 8, 13),
    "an epoch's end": (5, 10, 15),
    "SIGTERM": (4, 10, 13),
    "kill -9": (5, 10, 15),
    "finished": (3, 5, 12),
}
"""The steps at which a run ends three times, by the way in which it does.

From a checkpoint of the first three a run goes on after an exception in the step behind it. SIGTERM and kill -9 come in
the step behind the named one.
"""
WORKERS, RANKS = (0, 1, 2), (1, 2)
DATA, ENCODING = ("SCaR", "mixture"), ("whole batch", "gradient cache")
FACTORS: tuple[tuple[str, Sequence[Any]], ...] = (
    ("end", tuple(STOPS)),
    ("workers", WORKERS),
    ("ranks", RANKS),
    ("data", DATA),
    ("encoding", ENCODING),
)


@dataclass(frozen=True)
class Case:
    """A run that ends three times, each time in the same way, and then goes on to its last step.

    Example:
        >>> Case("SIGTERM", 2, 1, "SCaR", "whole batch").name
        'SIGTERM, workers 2, ranks 1, SCaR, whole batch'
    """

    end: str
    workers: int
    ranks: int
    data: str
    encoding: str

    @property
    def name(self) -> str:
        return f"{self.end}, workers {self.workers}, ranks {self.ranks}, {self.data}, {self.encoding}"

    @property
    def whole(self) -> tuple[int, str, str]:
        """What the run that nothing ends is made of: workers change nothing."""
        return self.ranks, self.data, self.encoding


def all_cases() -> list[Case]:
    """Return every case, those of the same whole run side by side."""
    cases = [Case(*values) for values in product(*(values for _, values in FACTORS))]
    return sorted(cases, key=lambda case: (case.whole, case.name))


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    """Return the pairs of values that a case has."""
    return set(combinations(asdict(case).items(), 2))


def covering_cases(seed: int = SEED) -> list[Case]:
    """Return few cases that have every pair of values of two factors: greedily, ties drawn by a seed."""
    candidates = all_cases()
    random.Random(seed).shuffle(candidates)
    missing = set().union(*map(pairs_of, candidates))
    chosen: list[Case] = []
    while missing:
        best = max(candidates, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return sorted(chosen, key=lambda case: (case.whole, case.name))
