"""Estimates of a retrieval's metrics over queries clustered by image, and of the difference between two retrievals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from virtue_pl.evaluation.retrieval.region_retrieval import METRICS, RetrievalScores
from virtue_pl.evaluation.statistics.intervals import Estimate, difference_estimate, share_estimate
from virtue_pl.evaluation.statistics.scores import Scores, score


class RetrievalEstimate(NamedTuple):
    """Estimates of one way to search over some queries. metrics: metric -> estimate. chance: metric -> expected value.

    Example:
        >>> RetrievalEstimate({"hit@1": Estimate(0.5, 0.4, 0.6, 400, 1)}, {"hit@1": 0.01}).metrics["hit@1"].mean
        0.5
    """

    metrics: dict[str, Estimate]
    chance: dict[str, float]


def estimate_retrieval(found: RetrievalScores, images: Sequence[str]) -> RetrievalEstimate:
    """Return the estimates of each metric that was measured. images: the image of each query, by which they cluster."""
    numbers = number_images(images)
    measured = [name for column, name in enumerate(METRICS) if not np.isnan(found.values[:, column]).any()]
    columns = [METRICS.index(name) for name in measured]
    chance = found.chance.mean(axis=0)
    return RetrievalEstimate(
        {name: share_estimate(scores_of(found.values[:, METRICS.index(name)], numbers)) for name in measured},
        {METRICS[column]: float(chance[column]) for column in columns},
    )


def retrieval_differences(
    first: RetrievalScores, second: RetrievalScores, images: Sequence[str], same_training: bool
) -> dict[str, Estimate]:
    """Return each metric of the first less that of the second, paired by query.

    same_training: one model gives both. The interval is over queries; where there are two models it says nothing of
    other trainings of them.
    """
    numbers = number_images(images)
    found = {}
    for column, name in enumerate(METRICS):
        both = first.values[:, column], second.values[:, column]
        if not np.isnan(both).any():
            scored = [scores_of(values, numbers) for values in both]
            found[name] = difference_estimate(scored[0], scored[1], same_trainings=same_training)
    return found


def scores_of(values: Float[np.ndarray, " queries"], images: Int[np.ndarray, " queries"]) -> Scores:
    """Return the scores of one training's values. images: the number of each query's image."""
    return score([values[None]], [images])


def number_images(images: Sequence[str]) -> Int[np.ndarray, " queries"]:
    """Return each image's number, from 0, in the order of their first query."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(image, len(numbers)) for image in images])
