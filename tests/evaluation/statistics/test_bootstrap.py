"""Intervals against a literal loop, against the normal approximation, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from virtue_pl.evaluation.statistics.bootstrap import Hits, align_hits, difference, interval, mean_interval
from virtue_pl.types import VirtueError


def literal(first: Hits, second: Hits | None, resamples: int) -> tuple[float, float]:
    """The same bootstrap, one resample and one query at a time."""
    generator, found = np.random.default_rng(1), []
    for _ in range(resamples):
        queries = generator.integers(first.shape[1], size=first.shape[1])
        shares = []
        for run in (first, second):
            if run is not None:
                seeds = generator.integers(len(run), size=len(run))
                shares.append(np.mean([run[seed, query] for seed in seeds for query in queries]))
        found.append(shares[0] - (shares[1] if second is not None else 0))
    return tuple(np.quantile(found, [0.025, 0.975]))  # type: ignore[return-value]


@pytest.mark.parametrize(("seeds", "others"), [(1, 1), (3, 1), (3, 2)])
def test_it_is_what_a_literal_loop_finds(seeds: int, others: int) -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.random((count, 30)) < share for count, share in ((seeds, 0.6), (others, 0.4)))
    alone, apart = interval(first), difference(first, second)
    assert (alone.mean, apart.mean) == (pytest.approx(first.mean()), pytest.approx(first.mean() - second.mean()))
    assert alone[1:3] == pytest.approx(literal(first, None, 2000), abs=0.034)  # one query of thirty
    assert apart[1:3] == pytest.approx(literal(first, second, 2000), abs=0.034)  # one query of thirty
    assert alone[3:] == apart[3:] == (30, seeds)


def test_queries_are_paired() -> None:
    """A hundred hard queries are hard for both: what counts is the few that differ."""
    first = np.arange(1000)[None] % 2 == 0
    second = first.copy()
    second[0, :20:2] = False
    found = difference(first, second)
    assert found.mean == pytest.approx(0.01) and found.differs
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * (0.01 * 0.99 / 1000) ** 0.5, rel=0.1)
    assert difference(first, first)[:3] == (0, 0, 0) and not difference(first, first).differs


def test_modes_of_the_same_trainings_share_what_sets_the_trainings_apart() -> None:
    """Three trainings right in a fifth, a half and four fifths of the queries; in the second mode each misses the same
    five more.
    """
    first = np.arange(500)[None] < np.array([[100], [250], [400]])
    second = first & (np.arange(500) >= 5)
    same, apart = difference(first, second, same_trainings=True), difference(first, second)
    assert same.mean == apart.mean == pytest.approx(0.01) and same.differs and not apart.differs
    assert (same.high - same.low) / 2 == pytest.approx(1.96 * (0.01 * 0.99 / 500) ** 0.5, rel=0.15)


def test_trainings_that_disagree_widen_the_interval() -> None:
    alike, apart = np.zeros((3, 400), dtype=bool), np.zeros((3, 400), dtype=bool)
    alike[:, :200] = True
    apart[0, :120], apart[1, :200], apart[2, :280] = True, True, True
    assert interval(alike).mean == interval(apart).mean == 0.5
    assert interval(apart).high - interval(apart).low > 2 * (interval(alike).high - interval(alike).low)


def test_equal_seeds_give_equal_intervals() -> None:
    hits = np.random.default_rng(0).random((2, 50)) < 0.5
    assert interval(hits) == interval(hits)
    assert interval(hits, resamples=100) != interval(hits, resamples=100, seed=1)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for number in range(400):
        first, second = generator.random((1, 200)) < 0.5, generator.random((1, 200)) < 0.35
        found = difference(first, second, resamples=500, seed=number)
        held += found.low <= 0.15 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_runs_meet_at_the_queries_that_all_have_ranked() -> None:
    first, second = align_hits([{"a": 0, "b": 1, "c": 0}, {"c": 3, "b": 0, "a": 0}], [{"b": 0, "c": 0, "d": 0}])
    assert first.tolist() == [[False, True], [True, False]] and second.tolist() == [[True, True]]
    with pytest.raises(VirtueError, match="ranked 1, 1 samples and share no key"):
        align_hits([{"a": 0}], [{"b": 0}])


def test_a_mean_over_tasks_is_surer_than_its_tasks() -> None:
    """Four tasks of equal share: the interval of their mean is half as wide; a task always right adds no doubt."""
    generator = np.random.default_rng(2)
    tasks = [generator.permuted(np.arange(200) < 100)[None] for _ in range(4)]
    alone, together = interval(tasks[0]), mean_interval(tasks)
    assert together.mean == 0.5 and together.queries == 800
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(0.5, abs=0.05)
    sure = mean_interval([tasks[0], np.ones((1, 50), dtype=bool)])
    assert sure.mean == 0.75 and (sure.high - sure.low) / (alone.high - alone.low) == pytest.approx(0.5, abs=0.05)
