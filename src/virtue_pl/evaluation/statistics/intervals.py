"""Intervals of a variant's score, and of the difference between two variants: one model of variance for all tables.

The model. A variant's score is the mean over trainings that could have been made of it (other seeds) and over queries
that could have been asked. A training is drawn once, for all its tasks. Queries are drawn by image: those of one image
come together. Queries are the same for all trainings of all variants (crossed), trainings belong to their variant
(nested). That is the multi-reader multi-case analysis of diagnostic images, with readers nested in tests: a training is
a reader, a query a case, a variant a test (Obuchowski and Rockette 1995, Communications in Statistics 24:285; Hillis
2007, Statistics in Medicine 26:596; Hillis 2014, Statistics in Medicine 33:330, on readers nested in tests).

The variance. Of variants A and B with n_A and n_B trainings

    Var(score_A - score_B) = MS (1 / n_A + 1 / n_B) + max(Cov_AA + Cov_BB - 2 Cov_AB, 0)

MS is the variance between trainings within a variant, pooled over both, with n_A + n_B - 2 degrees of freedom; it holds
how much trainings differ on average, and what a training makes of a single query beside it. Cov_AA is the mean
covariance of two trainings of A, Cov_AB that of one of each, if images were drawn anew: what is left of their
difference is how much a query suits a variant. Of one variant's score it is MS / n_A + Cov_AA.
A variant with one training borrows MS from the other one, or, where both have one, from further variants of the same
comparison; and then its covariance is what its variance is more than another training's own part. Where there is none
to borrow from, nothing is known of other trainings: the interval is over queries, of these trainings alone, and no
difference between variants is claimed (`Estimate.differs`).

The quantile. With a share w of the variance from trainings, it is

    t_images + (t_trainings - t_images) w ** 1.25

between the two t-quantiles. Cochran (1964, Biometrics 20:191) has the exponent 1, which covers up to 98 % of the time
at nominal 95 and one or two degrees of freedom; Satterthwaite's (1946, Biometrics Bulletin 2:110), which Hillis takes,
down to 86 and 92 %. With 1.25 it is, by integration over all w, 93.0 to 97.1 % for one degree of freedom, 94.7 to
96.5 % for two, and 95.0 to 96.1 % for more.
Two floors: an interval is at least half as wide as that over queries alone, since a few trainings may agree by chance;
and it reaches at least 1 - ((1 - level) / 2) ** (1 / queries) far (about 3.7 queries, the "rule of three"): a run that
had all of them right has no score of exactly 100 %. Where all images have the same share, nothing tells how far the
queries of one come together, and it is that many images. A table's standard error has the same floor.

`tests/evaluation/statistics/test_intervals.py` simulates how often all this holds the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from virtue_pl.evaluation.statistics.scores import Answers, Images, Scores, score

LEVEL = 0.95
WEIGHT = 1.25
"""Exponent of the share of variance from trainings in the quantile."""
NORMAL = 1.96
"""Two-sided quantile of the normal distribution at `LEVEL`."""
ROUNDING = 1e-20
"""A variance that is as small is zero."""
QUERIES, TRAININGS = "queries", "trainings and queries"
"""Names of what an interval is over."""
Studies = Float[np.ndarray, "*studies"]


class Estimate(NamedTuple):
    """Share, or difference of shares, with its interval, both in [-1, 1].

    queries, seeds: the numbers that it is estimated from; a difference counts the first run's.
    images: the number of images that the queries are clustered by. over: "trainings and queries", or "queries" where
    the interval says nothing of other trainings. borrowed: the spread between trainings is that of other runs.

    Example:
        >>> Estimate(0.12, 0.05, 0.19, queries=400, seeds=3).differs
        True
        >>> Estimate(0.12, 0.05, 0.19, queries=400, seeds=1, over="queries").differs
        False
    """

    mean: float
    low: float
    high: float
    queries: int
    seeds: int
    images: int = 0
    over: str = TRAININGS
    borrowed: bool = False

    @property
    def differs(self) -> bool:
        """True where variants differ: the interval is over trainings, too, and excludes zero."""
        return self.over == TRAININGS and self.excludes_zero

    @property
    def excludes_zero(self) -> bool:
        """True where the interval excludes zero, whatever it is over."""
        return self.low > 0 or self.high < 0


class Spread(NamedTuple):
    """Spread between the trainings of a variant, pooled over variants that have several.

    between: variance of the trainings' means. own: the part of it that comes of single queries. df: its degrees of
    freedom; 0 where no variant has several trainings.

    Example:
        >>> pool([score([np.array([[True, False, True], [True, True, True]])])]).df
        1
    """

    between: Studies
    own: Studies
    df: int


def interval(answers: Answers, images: Images | None = None, level: float = LEVEL) -> Estimate:
    """Return the share of right answers of one run, over its trainings and queries, or over queries where it has one.

    images: of each query; by default each has its own.
    """
    return share_estimate(score([answers], None if images is None else [images]), level)


def mean_interval(tasks: Sequence[Answers], images: Sequence[Images] | None = None, level: float = LEVEL) -> Estimate:
    """Return the unweighted mean of one run's shares over several tasks. Row r of all is the same training.

    Its number of queries is that of all tasks.
    """
    return share_estimate(score(tasks, images), level)


def difference(
    first: Answers,
    second: Answers,
    images: Images | None = None,
    level: float = LEVEL,
    same_trainings: bool = False,
    others: Sequence[Answers] = (),
) -> Estimate:
    """Return the first run's share of right answers less the second's; column q of both is the same query.

    same_trainings: row s of both is the same training, too. others: further variants on the same queries, from which
    two runs with one training each borrow the spread.
    """
    scored = [score([each], None if images is None else [images]) for each in (first, second, *others)]
    return difference_estimate(scored[0], scored[1], scored[2:], level, same_trainings)


def share_estimate(found: Scores, level: float = LEVEL) -> Estimate:
    """Return the estimate of one run's mean over its trainings, within [0, 1]."""
    mean, margin = float(found.means.mean()), float(share_margin(found, level))
    over = TRAININGS if found.trainings > 1 else QUERIES
    low, high = max(0.0, mean - margin), min(1.0, mean + margin)
    return Estimate(mean, low, high, found.queries, found.trainings, found.images, over)


def difference_estimate(
    first: Scores, second: Scores, others: Sequence[Scores] = (), level: float = LEVEL, same_trainings: bool = False
) -> Estimate:
    """Return the estimate of the difference of two runs' means over the same images. Arguments: see `difference`."""
    mean = float(first.means.mean() - second.means.mean())
    if same_trainings:
        margin, has_spread, borrowed = float(share_margin(first.less(second), level)), first.trainings > 1, False
    else:
        margin = float(difference_margin(first, second, others, level))
        has_spread = lenders(first, second, others) != []
        borrowed = has_spread and min(first.trainings, second.trainings) == 1
    low, high = max(-1.0, mean - margin), min(1.0, mean + margin)
    over = TRAININGS if has_spread else QUERIES
    return Estimate(mean, low, high, first.queries, first.trainings, first.images, over, borrowed)


def share_margin(found: Scores, level: float = LEVEL) -> Studies:
    """Return how far the interval of one run's mean reaches to both sides."""
    return margin(variance(found.deviations), pool([found]), 1 / found.trainings, found, level)


def difference_margin(first: Scores, second: Scores, others: Sequence[Scores] = (), level: float = LEVEL) -> Studies:
    """Return how far the interval of the difference of two runs' means reaches to both sides."""
    spread = pool(lenders(first, second, others))
    apart = first.deviations.mean(axis=-2, keepdims=True) - second.deviations.mean(axis=-2, keepdims=True)
    fewer = min(first, second, key=lambda run: run.images_df)._replace(
        query_step=max(first.query_step, second.query_step), image_step=max(first.image_step, second.image_step)
    )
    return margin(variance(apart), spread, 1 / first.trainings + 1 / second.trainings, fewer, level)


def lenders(first: Scores, second: Scores, others: Sequence[Scores]) -> list[Scores]:
    """Return the runs whose spread between trainings holds for a pair: the two, or else the others, if they have it."""
    return [run for run in (first, second) if run.trainings > 1] or [run for run in others if run.trainings > 1]


def standard_error(found: Scores) -> Float[np.ndarray, "*studies"] | None:
    """Return the standard error of one training's score over queries clustered by image, as all tables show it.

    It is never zero: `NORMAL` of them reach at least as far as the rule of three. None where all queries are of one
    image.
    """
    if found.images_df < 1:
        return None
    of_queries = variance(found.deviations)
    return np.maximum(np.sqrt(of_queries), rule_of_three(of_queries, found, LEVEL) / NORMAL)


def error_of_count(right: int, queries: int) -> float | None:
    """Return the standard error of a share, the queries taken as independent; None for a single query.

    Example:
        >>> round(error_of_count(300, 300), 4)
        0.0062
    """
    error = standard_error(score([(np.arange(queries) < right)[None]]))
    return None if error is None else float(error)


def variance(deviations: Float[np.ndarray, "*studies trainings images"]) -> Studies:
    """Return the variance of the trainings' mean, if images were drawn anew."""
    return (deviations.mean(axis=-2) ** 2).sum(axis=-1)


def pool(runs: Sequence[Scores]) -> Spread:
    """Return the spread of runs, each weighted by its degrees of freedom."""
    several = [run for run in runs if run.trainings > 1]
    df = sum(run.trainings - 1 for run in several)
    between: Any = sum(((run.trainings - 1) * run.means.var(axis=-1, ddof=1) for run in several), np.float64(0))
    own: Any = sum(
        ((run.trainings - 1) * run.deviations.var(axis=-2, ddof=1).sum(axis=-1) for run in several), np.float64(0)
    )
    return Spread(np.asarray(between / max(1, df)), np.asarray(own / max(1, df)), df)


def margin(of_queries: Studies, spread: Spread, share: float, run: Scores, level: float) -> Studies:
    """Return the half width of an interval.

    of_queries: variance of the estimate if images were drawn anew, for these trainings. share: 1 / trainings, summed
    over the runs. run: gives the degrees of freedom of `of_queries`, and the weights of one query and image.
    """
    if run.images_df < 1:
        return np.full(np.shape(of_queries), np.inf)
    least = rule_of_three(of_queries, run, level)
    alone = t_quantile(run.images_df, level)
    over_queries = np.maximum(alone * np.sqrt(of_queries), least)
    if spread.df == 0:
        return over_queries
    trainings = spread.between * share
    total = trainings + np.maximum(of_queries - spread.own * share, 0)
    weight = np.divide(trainings, total, out=np.zeros_like(total), where=total > 0) ** WEIGHT
    quantile = alone + (t_quantile(spread.df, level) - alone) * weight
    return np.maximum(quantile * np.sqrt(total), np.maximum(over_queries / 2, least))


def rule_of_three(of_queries: Studies, run: Scores, level: float) -> Studies:
    """Return how far an interval reaches at least: to the share that all queries miss, or all images, by chance."""
    steps = np.where(of_queries > ROUNDING, run.query_step, run.image_step)
    return 1 - ((1 - level) / 2) ** steps


def t_quantile(df: int, level: float) -> float:
    """Return the two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # a second's import, which a command's help does without

    return float(stdtrit(df, (1 + level) / 2))
