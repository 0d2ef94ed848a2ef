"""Intervals by how often they hold the truth, in simulated studies; and by hand where that can be done.

Monte Carlo error: of 2,000 studies, the standard error of a coverage of 95 % is 0.49 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import chdtri, nctdtr, ndtr, ndtri, stdtrit

from virtue_pl.evaluation.statistics.intervals import (
    QUERIES,
    Estimate,
    Spread,
    difference,
    difference_margin,
    interval,
    margin,
    mean_interval,
    share_margin,
)
from virtue_pl.evaluation.statistics.scores import Scores, score

STUDIES = 2000
SPREADS = (0.0, 0.01, 0.03, 0.05, 0.1)
SHAPES = {1: (100, 3), 8: (20, 2)}
"""Number of tasks -> images of a task, queries of an image."""


def studies(
    trainings: Sequence[int], spread: float, tasks: int, shares: Sequence[float], seed: int, images: int | None = None
) -> list[Scores]:
    """Scores of variants in simulated studies.

    A training's true share is its variant's plus a normal draw of the given spread, the same in all tasks. A query is
    right where its difficulty, of which 0.3 is its image's, 0.3 its own and 0.4 new for each training, is below the
    training's quantile, so that the share of right ones is the training's true one.
    """
    generator = np.random.default_rng(seed)
    of_task, per_image = SHAPES[tasks]
    of_task = images or of_task
    true = [
        np.clip(share + spread * generator.standard_normal((STUDIES, count)), 0.01, 0.99)
        for share, count in zip(shares, trainings, strict=True)
    ]
    answers: list[list[np.ndarray]] = [[] for _ in trainings]
    for _ in range(tasks):
        of_images = np.repeat(generator.standard_normal((STUDIES, 1, of_task), dtype=np.float32), per_image, axis=-1)
        of_queries = generator.standard_normal(of_images.shape, dtype=np.float32)
        for variant, count in enumerate(trainings):
            new = generator.standard_normal((STUDIES, count, of_images.shape[-1]), dtype=np.float32)
            difficulty = 0.3**0.5 * (of_images + of_queries) + 0.4**0.5 * new
            answers[variant].append(difficulty < ndtri(true[variant]).astype(np.float32)[..., None])
    numbers = [np.repeat(np.arange(of_task), per_image) + task * of_task for task in range(tasks)]
    return [score(found, numbers, tasks * of_task) for found in answers]


def coverage(apart: np.ndarray, reach: np.ndarray) -> float:
    """Percentage of studies whose interval holds the truth. apart: estimate less truth."""
    return 100 * float(np.mean(np.abs(apart) <= reach))


@pytest.mark.parametrize("tasks", [1, 8])
@pytest.mark.parametrize("spread", SPREADS)
def test_differences_hold_the_truth_as_often_as_they_say(spread: float, tasks: int) -> None:
    for counts, (low, high) in {
        (2, 2): (93, 97),
        (3, 3): (93, 97),
        (5, 5): (93, 97),
        (1, 2): (91, 97),
        (1, 3): (91, 97),
        (1, 5): (91, 97),
    }.items():
        first, second = studies(counts, spread, tasks, (0.55, 0.55), seed=tasks)
        apart = first.means.mean(axis=-1) - second.means.mean(axis=-1)
        assert low <= coverage(apart, difference_margin(first, second)) <= high, counts
        if counts in ((3, 3), (5, 5)):
            score_apart = second.means.mean(axis=-1) - 0.55
            assert 93 <= coverage(score_apart, share_margin(second)) <= 97.5, counts


@pytest.mark.parametrize("tasks", [1, 8])
def test_two_single_trainings_borrow_from_a_third_variant(tasks: int) -> None:
    first, second, third = studies((1, 1, 3), 0.03, tasks, (0.5, 0.5, 0.6), seed=3)
    apart = (first.means - second.means)[..., 0]
    assert 91 <= coverage(apart, difference_margin(first, second, [third])) <= 97


def test_a_difference_of_ten_points_is_found() -> None:
    """Not by width alone: three trainings each, a spread of 3 points, 750 queries of 250 images."""
    first, second = studies((3, 3), 0.03, 1, (0.6, 0.5), seed=4, images=250)
    found = first.means.mean(axis=-1) - second.means.mean(axis=-1) > difference_margin(first, second)
    assert found.mean() >= 0.7


def test_the_documented_power_is_that_of_simulated_studies() -> None:
    """Every cell of the table in docs/evaluation.md to 2 points, which is twice its standard error."""
    lines = (Path(__file__).parents[3] / "docs/evaluation.md").read_text().splitlines()
    start = lines.index("| queries | 2 trainings each | 3 | 4 | 5 |")
    for line in lines[start + 2 : start + 7]:
        queries, *documented = map(int, line.strip("| ").split(" | "))
        for count, said in zip((2, 3, 4, 5), documented, strict=True):
            first, second = studies((count, count), 0.03, 1, (0.6, 0.5), seed=4, images=round(queries / 3))
            found = first.means.mean(axis=-1) - second.means.mean(axis=-1) > difference_margin(first, second)
            assert 100 * found.mean() == pytest.approx(said, abs=2), (queries, count)


def test_the_power_is_that_of_a_t_test() -> None:
    """At 300 queries, where queries suit both variants alike: no interval with its coverage finds more by width."""
    first, second = studies((3, 3), 0.03, 1, (0.6, 0.5), seed=4)
    apart = first.means.mean(axis=-1) - second.means.mean(axis=-1)
    found = np.mean(apart > difference_margin(first, second))
    assert found == pytest.approx(1 - nctdtr(4, 0.1 / apart.std(), stdtrit(4, 0.975)), abs=0.03)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 8])
def test_the_quantile_covers_whatever_part_trainings_have(df: int) -> None:
    """By integration over the estimated variance between trainings, the variance over queries being known."""
    chances = (np.arange(4000) + 0.5) / 4000
    estimated = chdtri(df, 1 - chances) / df
    run = Scores(np.zeros(1), np.zeros((1, 1)), 10**6, 10**6, 10**6, query_step=1e-9, image_step=1e-9)
    for part in np.linspace(0, 1, 21):
        reach = margin(np.full(4000, part), Spread((1 - part) * estimated, np.zeros(4000), df), 1.0, run, 0.95)
        covered = 100 * np.mean(2 * ndtr(reach) - 1)
        assert (92.9 if df == 1 else 94.5) <= covered <= (97.3 if df == 1 else 96.6), part


def test_one_training_against_one_claims_nothing_of_variants() -> None:
    first, second = np.ones((1, 400), dtype=bool), np.zeros((1, 400), dtype=bool)
    found = difference(first, second)
    assert found.over == QUERIES and found.excludes_zero and not found.differs
    several = np.random.default_rng(0).random((3, 400)) < 0.5
    lent = difference(first, second, others=[several])
    assert lent.differs and lent.borrowed and interval(first).over == QUERIES


def test_one_trainings_interval_is_the_cluster_robust_one() -> None:
    """Against its formula, one image at a time."""
    generator = np.random.default_rng(1)
    images, hits = np.repeat(np.arange(40), 3), np.repeat(generator.random(40) < 0.6, 3)[None]
    found, alone = interval(hits, images), interval(hits)
    mean = hits.mean()
    sums = [sum(hits[0, query] - mean for query in range(120) if images[query] == image) for image in range(40)]
    error = (40 / 39 * sum(value**2 for value in sums)) ** 0.5 / 120
    assert found.high - found.mean == pytest.approx(2.0227 * error, rel=1e-4)
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(3**0.5 * 2.0227 / 1.9801, rel=0.02)
    assert (found.images, found.queries) == (40, 120)


def test_the_variance_is_that_of_readers_nested_in_tests() -> None:
    """Two trainings of each of two variants, against MS and the covariances of Hillis, one pair at a time."""
    generator = np.random.default_rng(2)
    hard = generator.random(200)
    trainings = [(hard + 0.6 * generator.random(200) < share)[None] for share in (0.9, 0.95, 0.7, 0.75)]
    first, second = (score([np.concatenate(pair)]) for pair in (trainings[:2], trainings[2:]))
    covariances = np.cov(np.concatenate(trainings)) / 200
    within = (covariances[0, 1] + covariances[2, 3]) / 2
    across = covariances[:2, 2:].mean()
    means = np.concatenate(trainings).mean(axis=1)
    between = (means[:2].var(ddof=1) + means[2:].var(ddof=1)) / 2
    total = between + 2 * max(within - across, 0)
    weight = (between / total) ** 1.25
    quantile = 1.97196 + (4.30265 - 1.97196) * weight
    assert difference_margin(first, second) == pytest.approx(quantile * total**0.5, rel=1e-3)


def test_queries_are_paired() -> None:
    """A hundred hard queries are hard for both: what counts is the few that differ."""
    first = np.arange(1000)[None] % 2 == 0
    second = first.copy()
    second[0, :20:2] = False
    found = difference(first, second)
    assert found.mean == pytest.approx(0.01) and found.excludes_zero
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * (0.01 * 0.99 / 1000) ** 0.5, rel=0.01)


def test_modes_of_the_same_trainings_share_what_sets_the_trainings_apart() -> None:
    """Three trainings right in a fifth, a half and four fifths; in the second mode each misses the same five more."""
    first = np.arange(500)[None] < np.array([[100], [250], [400]])
    second = first & (np.arange(500) >= 5)
    same, apart = difference(first, second, same_trainings=True), difference(first, second)
    assert same.mean == apart.mean == pytest.approx(0.01) and same.differs and not apart.differs


def test_what_all_queries_agree_on_is_not_certain() -> None:
    """Of 300 queries all are right: the rule of three, 1 - 0.025 ** (1 / 300) = 1.2 %."""
    right = np.ones((1, 300), dtype=bool)
    assert interval(right)[:3] == (1.0, pytest.approx(1 - 0.0122, abs=2e-4), 1.0)
    assert difference(right, right).high == pytest.approx(0.0122, abs=2e-4)
    several = difference(np.ones((3, 300), dtype=bool), np.ones((3, 300), dtype=bool))
    assert several.low < 0 < several.high


def test_one_image_tells_nothing() -> None:
    answers = np.array([[True, False, True]])
    assert interval(answers, np.zeros(3, dtype=int))[1:3] == (0, 1)
    assert difference(answers, ~answers, np.zeros(3, dtype=int))[1:3] == (-1, 1)


def test_a_mean_over_tasks_is_surer_than_its_tasks_but_no_surer_of_trainings() -> None:
    generator = np.random.default_rng(2)
    tasks = [generator.permuted(np.arange(200) < 100)[None] for _ in range(4)]
    alone, together = interval(tasks[0]), mean_interval(tasks)
    assert together.mean == 0.5 and together.queries == 800
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(0.5, abs=0.05)
    apart = np.arange(200)[None] < np.array([[60], [100], [140]])
    one, eight = interval(apart), mean_interval([apart] * 8)
    assert (eight.high - eight.low) / (one.high - one.low) == pytest.approx(1, abs=0.1)


def test_images_in_several_tasks_are_one_cluster() -> None:
    hits, images = (np.arange(60) % 3 > 0)[None], np.arange(60)
    twice, apart = mean_interval([hits, hits], [images, images]), mean_interval([hits, hits])
    assert (twice.high - twice.low) / (apart.high - apart.low) == pytest.approx(2**0.5, rel=0.02)


def test_an_estimate_says_what_it_is_over() -> None:
    assert Estimate(0.1, 0.05, 0.15, 100, 3).differs and not Estimate(0.1, 0.05, 0.15, 100, 1, over=QUERIES).differs
