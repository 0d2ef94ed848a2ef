"""The loss of a query among its own candidates, as validation logs it, against literal sums."""

from __future__ import annotations

import math

import pytest
import torch

from virtue_pl.losses import InfoNCELoss, MatryoshkaLoss, SigmoidLoss
from virtue_pl.losses.base import EmbeddingLoss
from virtue_pl.types import EmbeddingBatch, PairIds

SCORES = ([0.9, 0.2, -0.4], [0.1, 0.5])
TEMPERATURE = 0.1


def cross_entropy(scores: list[float]) -> float:
    return math.log(sum(math.exp((score - scores[0]) / TEMPERATURE) for score in scores))


def sigmoid_loss(scores: list[float]) -> float:
    signs = [1, *[-1] * (len(scores) - 1)]
    shifted = [sign * (score / TEMPERATURE - 2.0) for sign, score in zip(signs, scores, strict=True)]
    return sum(math.log(1 + math.exp(-value)) for value in shifted)


@pytest.mark.parametrize(
    ("loss", "of_query"),
    [
        (InfoNCELoss(TEMPERATURE), cross_entropy),
        (MatryoshkaLoss(InfoNCELoss(TEMPERATURE), [2, 4]), cross_entropy),
        (SigmoidLoss(TEMPERATURE, bias=-2.0), sigmoid_loss),
    ],
    ids=["infonce", "matryoshka", "sigmoid"],
)
def test_it_is_the_mean_over_queries_whatever_the_lengths(loss: EmbeddingLoss, of_query) -> None:
    found = loss.ranking_loss([torch.tensor(scores) for scores in SCORES])
    assert found is not None and found.item() == pytest.approx(sum(map(of_query, SCORES)) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", [InfoNCELoss(TEMPERATURE), SigmoidLoss(TEMPERATURE)], ids=["infonce", "sigmoid"])
def test_it_is_the_training_loss_of_a_query_with_the_same_candidates(loss: EmbeddingLoss) -> None:
    """One pair with three hard negatives."""
    query, target, *negatives = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    ids = PairIds(
        torch.tensor([0]), torch.tensor([1]), negative_ids=torch.arange(2, 5), negative_rows=torch.zeros(3).long()
    )
    batch = EmbeddingBatch(query[None], target[None], torch.stack(negatives), ids)
    scores = torch.stack([target, *negatives]) @ query
    assert torch.allclose(loss.ranking_loss([scores]), loss(batch).loss, atol=1e-5)


def test_a_loss_without_such_a_form_has_none() -> None:
    assert EmbeddingLoss.ranking_loss(InfoNCELoss(), []) is None
