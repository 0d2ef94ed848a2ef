"""Estimates of retrieval: means and intervals of the tested kind, and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from virtue_pl.evaluation.retrieval.region_retrieval import RetrievalScores
from virtue_pl.evaluation.statistics.intervals import difference, interval
from virtue_pl.evaluation.statistics.retrieval_estimates import estimate_retrieval, retrieval_differences

IMAGES = [f"image {number // 2}" for number in range(40)]
NUMBERS = np.arange(40) // 2


def draw(seed: int, share: float = 0.5) -> RetrievalScores:
    random = np.random.default_rng(seed)
    values = np.stack([random.random(40) < share, random.random(40) < 0.8, random.random(40)], axis=1)
    return RetrievalScores(values.astype(float), np.full((40, 3), [0.01, 0.1, 0.02]))


def test_estimates_are_clustered_by_image() -> None:
    found = draw(0)
    estimates = estimate_retrieval(found, IMAGES)
    assert estimates.metrics["hit@1"] == interval(found.values[:, 0][None], NUMBERS)
    assert estimates.metrics["map"].images == 20 and estimates.metrics["map"].mean == pytest.approx(
        found.values[:, 2].mean()
    )
    assert estimates.chance == pytest.approx({"hit@1": 0.01, "hit@10": 0.1, "map": 0.02})


def test_what_was_not_measured_has_no_estimate() -> None:
    found = draw(1)
    first_ten = found._replace(values=np.where([False, False, True], np.nan, found.values))
    assert list(estimate_retrieval(first_ten, IMAGES).metrics) == ["hit@1", "hit@10"]
    assert list(retrieval_differences(first_ten, found, IMAGES, same_training=True)) == ["hit@1", "hit@10"]


@pytest.mark.parametrize("same_training", [True, False])
def test_differences_are_paired_and_claim_no_other_training(same_training: bool) -> None:
    first, second = draw(2, 0.95), draw(3, 0.05)
    found = retrieval_differences(first, second, IMAGES, same_training)["hit@1"]
    expected = difference(first.values[:, 0][None], second.values[:, 0][None], NUMBERS, same_trainings=same_training)
    assert found == expected and found.excludes_zero and not found.differs
