from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.losses.sigmoid import SigmoidLoss
from virtue_pl.types import EmbeddingBatch, PairIds, VirtueError


def embedding_batch(pairs: int, per_query: int, dim: int = 8, seed: int = 0, repeats: bool = False) -> EmbeddingBatch:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: normalize(torch.randn(rows, dim, generator=generator), dim=-1)  # noqa: E731
    target_ids = torch.arange(pairs) + 100
    negative_ids = torch.arange(pairs * per_query) + 1000
    query_ids = torch.arange(pairs)
    if repeats:
        target_ids[1] = target_ids[0]
        query_ids[3] = query_ids[2]
        negative_ids[-1] = target_ids[0]
    rows = torch.arange(pairs).repeat_interleave(per_query)
    return EmbeddingBatch(
        draw(pairs), draw(pairs), draw(pairs * per_query), PairIds(query_ids, target_ids, negative_ids, rows)
    )


def without_negatives(batch: EmbeddingBatch) -> EmbeddingBatch:
    ids = replace(batch.ids, negative_ids=batch.ids.negative_ids[:0], negative_rows=batch.ids.negative_rows[:0])
    return replace(batch, negatives=batch.negatives[:0], ids=ids)


def literal(batch: EmbeddingBatch, temperature: float, own_weight: float) -> float:
    total = 0.0
    for i in range(len(batch)):
        right = math.exp((batch.queries[i] @ batch.targets[i]).item() / temperature)
        everything, own = right, right
        for j in range(len(batch)):
            if (
                j != i
                and batch.ids.target_ids[j] != batch.ids.target_ids[i]
                and batch.ids.query_ids[j] != batch.ids.query_ids[i]
            ):
                everything += math.exp((batch.queries[i] @ batch.targets[j]).item() / temperature)
        for k in range(len(batch.negatives)):
            if batch.ids.negative_ids[k] != batch.ids.target_ids[i]:
                score = math.exp((batch.queries[i] @ batch.negatives[k]).item() / temperature)
                everything += score
                own += score if batch.ids.negative_rows[k] == i else 0.0
        total += -math.log(right / everything) - own_weight * math.log(right / own)
    return total / len(batch)


@pytest.mark.parametrize("pairs", [4, 5, 9])
@pytest.mark.parametrize("per_query", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("own_weight", [0.0, 0.7])
@pytest.mark.parametrize("repeats", [False, True])
def test_infonce_equals_a_literal_double_loop(
    pairs: int, per_query: int, temperature: float, own_weight: float, repeats: bool
) -> None:
    batch = embedding_batch(pairs, per_query, repeats=repeats and per_query > 0)
    loss = InfoNCELoss(temperature, own_negatives_weight=own_weight)(batch).loss
    expected = literal(batch, temperature, own_weight if per_query else 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_sigmoid_equals_a_literal_double_loop() -> None:
    batch = embedding_batch(5, 2, repeats=True)
    loss = SigmoidLoss(temperature=0.2, bias=-1.5)(batch).loss.item()
    candidates, ids = (
        torch.cat([batch.targets, batch.negatives]),
        torch.cat([batch.ids.target_ids, batch.ids.negative_ids]),
    )
    expected = 0.0
    for i in range(5):
        for j in range(15):
            same_sample = j < 5 and batch.ids.query_ids[j] == batch.ids.query_ids[i]
            if j != i and (ids[j] == batch.ids.target_ids[i] or same_sample):
                continue
            score = (batch.queries[i] @ candidates[j]).item() / 0.2 - 1.5
            expected += math.log1p(math.exp(-score if i == j else score))
    assert loss == pytest.approx(expected / 5, rel=1e-5)


def literal_symmetric(batch: EmbeddingBatch, temperature: float, margin: float | None, same_image: bool) -> float:
    """Queries against targets, and targets against queries, one by one."""
    total = 0.0
    for anchors, candidates in ((batch.queries, batch.targets), (batch.targets, batch.queries)):
        for i in range(len(batch)):
            right = (anchors[i] @ candidates[i]).item()
            everything = math.exp(right / temperature)
            for j in range(len(batch)):
                cosine = (anchors[i] @ candidates[j]).item()
                same = (
                    batch.ids.target_ids[j] == batch.ids.target_ids[i]
                    or batch.ids.query_ids[j] == batch.ids.query_ids[i]
                )
                same = same or (same_image and batch.ids.image_ids[j] == batch.ids.image_ids[i])
                if j != i and not same and not (margin is not None and cosine > right + margin):
                    everything += math.exp(cosine / temperature)
            total += math.log(everything) - right / temperature
    return total / (2 * len(batch))


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("same_image", [False, True])
@pytest.mark.parametrize("pairs", [4, 9])
def test_symmetric_loss_and_masks_equal_a_literal_double_loop(
    pairs: int, same_image: bool, margin: float | None
) -> None:
    batch = without_negatives(embedding_batch(pairs, 1, repeats=True))
    batch = replace(batch, ids=replace(batch.ids, image_ids=torch.arange(pairs) // 2))
    loss = InfoNCELoss(0.2, symmetric=True, margin=margin, mask_same_image=same_image)(batch).loss
    assert loss.item() == pytest.approx(literal_symmetric(batch, 0.2, margin, same_image), rel=1e-5)


def test_equal_pairs_are_found_once_for_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, same_pair = [], InfoNCELoss.same_pair
    monkeypatch.setattr(InfoNCELoss, "same_pair", lambda self, batch: (calls.append(batch), same_pair(self, batch))[1])
    InfoNCELoss(0.2, symmetric=True)(embedding_batch(4, 1))
    assert len(calls) == 1


def test_a_margin_leaves_hard_negatives_out_too() -> None:
    batch = embedding_batch(4, 2)
    close = replace(batch, negatives=batch.queries.repeat_interleave(2, dim=0))
    masked = InfoNCELoss(0.2, margin=0.1)(close).loss
    none = without_negatives(close)
    cosines = batch.queries @ close.negatives.T
    right = (batch.queries * batch.targets).sum(dim=1, keepdim=True)
    assert bool(((cosines > right + 0.1).sum(dim=1) >= 2).all()) and masked < InfoNCELoss(0.2)(close).loss
    assert masked >= InfoNCELoss(0.2, margin=0.1)(none).loss


def test_a_batch_that_knows_no_images_cannot_be_masked_by_them() -> None:
    with pytest.raises(VirtueError, match=r"loss\.mask_same_image is set, but the batch does not say which images"):
        InfoNCELoss(mask_same_image=True)(embedding_batch(4, 1))


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_gradients_are_finite_where_false_negatives_are_left_out(kind: type[InfoNCELoss]) -> None:
    batch = embedding_batch(4, 1, repeats=True)
    batch.queries.requires_grad_()
    kind(0.1, learn_temperature=True, margin=-3.0)(batch).loss.backward()
    assert batch.queries.grad is not None and batch.queries.grad.isfinite().all()


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(VirtueError, match=r"loss\.temperature is 0"):
        InfoNCELoss(0.0)
