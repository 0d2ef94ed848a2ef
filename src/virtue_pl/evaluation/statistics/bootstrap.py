"""Bootstrap intervals of a hit rate, and of the difference between two runs, over resampled queries and seeds.

Each resample draws as many queries as there are, with replacement, and of each run as many seeds as it has. Two runs
that are compared share the sampled queries (a paired bootstrap, Efron and Tibshirani 1993), so what makes a query hard
for both cancels; their seeds are drawn independently, unless they are the same trainings in two evaluation modes: then
a training counts as often for one as for the other. With one seed the interval is that of this one training, and says
nothing of another; with three it includes how much trainings differ, though so few make it a little narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from virtue_pl.types import VirtueError

LEVEL, RESAMPLES = 0.95, 10_000

Hits = Bool[np.ndarray, "seeds queries"]
"""Whether each training of a run had each query right."""


class Estimate(NamedTuple):
    """Share, or difference of shares, with its interval, both in [-1, 1].

    queries, seeds: the numbers that it is estimated from; a difference counts the first run's.

    Example:
        >>> Estimate(0.12, 0.05, 0.19, queries=400, seeds=3).differs
        True
    """

    mean: float
    low: float
    high: float
    queries: int
    seeds: int

    @property
    def differs(self) -> bool:
        """True where the interval excludes zero."""
        return self.low > 0 or self.high < 0


def interval(hits: Hits, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the share of right answers of one run with its percentile interval."""
    return estimate(float(hits.mean()), resampled_shares([hits], resamples, seed)[0], level, hits)


def mean_interval(tasks: Sequence[Hits], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the unweighted mean of one run's shares over several tasks, whose queries are drawn independently.

    Its number of queries is that of all tasks.
    """
    drawn = np.mean(
        [resampled_shares([hits], resamples, seed + number)[0] for number, hits in enumerate(tasks)], axis=0
    )
    found = estimate(float(np.mean([hits.mean() for hits in tasks])), drawn, level, tasks[0])
    return found._replace(queries=sum(hits.shape[1] for hits in tasks))


def difference(
    first: Hits,
    second: Hits,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    same_trainings: bool = False,
) -> Estimate:
    """Return the first run's share of right answers less the second's; column q of both is the same query.

    same_trainings: row s of both is the same training, too.
    """
    drawn = resampled_shares([first, second], resamples, seed, same_trainings)
    return estimate(float(first.mean() - second.mean()), drawn[0] - drawn[1], level, first)


def estimate(mean: float, drawn: Float[np.ndarray, " resamples"], level: float, hits: Hits) -> Estimate:
    """Return the mean with the percentile interval of the resampled values."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), hits.shape[1], hits.shape[0])


def resampled_shares(
    runs: Sequence[Hits], resamples: int, seed: int, same_trainings: bool = False
) -> Float[np.ndarray, "runs resamples"]:
    """Return the share of right answers of every run in every resample.

    Queries with the same outcome in all trainings are one pattern, so drawing queries is one draw from a multinomial
    over the few patterns.
    """
    generator = np.random.default_rng(seed)
    patterns, counts = np.unique(np.concatenate(runs), axis=1, return_counts=True)
    queries = generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    shares, start = [], 0
    for number, run in enumerate(runs):
        if number == 0 or not same_trainings:
            seeds = generator.multinomial(len(run), np.full(len(run), 1 / len(run)), size=resamples)
        of_run = patterns[start : start + len(run)]
        shares.append(((seeds @ of_run) * queries).sum(axis=1) / (len(run) * counts.sum()))
        start += len(run)
    return np.stack(shares)


def align_hits(*runs: Sequence[Mapping[str, int]], k: int = 1) -> tuple[Hits, ...]:
    """Return every run's hits among the first `k`, over the queries that all trainings of all runs have ranked.

    Column q is the same query in all. runs: for each training, rank by the query's key (`RankRows.ranks`).
    Raises VirtueError if no key is shared.
    """
    keys = sorted(set.intersection(*(set(ranks) for run in runs for ranks in run)))
    if not keys:
        counts = ", ".join(str(len(ranks)) for run in runs for ranks in run)
        raise VirtueError(
            f"nothing to compare: the trainings ranked {counts} samples and share no key; test all on the same data"
        )
    return tuple(np.array([[ranks[key] < k for key in keys] for ranks in run]) for run in runs)
