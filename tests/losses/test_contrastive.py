from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from virtue_pl.engine.module import load_weights
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import TEMPERATURE_BOUNDS, ContrastiveLoss, InfoNCELoss
from virtue_pl.losses.matryoshka import MatryoshkaLoss
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


def keep_negatives(batch: EmbeddingBatch, kept: list[int]) -> EmbeddingBatch:
    """The batch with the hard negatives of these indices alone."""
    ids = replace(batch.ids, negative_ids=batch.ids.negative_ids[kept], negative_rows=batch.ids.negative_rows[kept])
    return replace(batch, negatives=batch.negatives[kept], ids=ids)


def literal(batch: EmbeddingBatch, temperature: float, own_weight: float, masked: bool = True) -> float:
    """The mean over queries, and the mean of the own negatives' term over those that have any left."""
    terms, own_terms = [], []
    for i in range(len(batch)):
        right = math.exp((batch.queries[i] @ batch.targets[i]).item() / temperature)
        everything, own, has_own = right, right, False
        for j in range(len(batch)):
            same = (
                batch.ids.target_ids[j] == batch.ids.target_ids[i] or batch.ids.query_ids[j] == batch.ids.query_ids[i]
            )
            if j != i and not (same and masked):
                everything += math.exp((batch.queries[i] @ batch.targets[j]).item() / temperature)
        for k in range(len(batch.negatives)):
            if not (masked and batch.ids.negative_ids[k] == batch.ids.target_ids[i]):
                score = math.exp((batch.queries[i] @ batch.negatives[k]).item() / temperature)
                everything += score
                if batch.ids.negative_rows[k] == i:
                    own, has_own = own + score, True
        terms.append(-math.log(right / everything))
        own_terms += [-math.log(right / own)] * has_own
    return sum(terms) / len(terms) + own_weight * (sum(own_terms) / len(own_terms) if own_terms else 0.0)


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


@pytest.mark.parametrize("kept", [[0], [5, 1], [0, 1, 2, 9], []])
@pytest.mark.parametrize("masked", [True, False])
def test_queries_without_hard_negatives_do_not_count_among_those_that_have_some(kept: list[int], masked: bool) -> None:
    batch = keep_negatives(embedding_batch(8, 2, repeats=True), kept)
    loss = InfoNCELoss(0.2, own_negatives_weight=0.7, mask_false_negatives=masked)(batch).loss
    assert loss.item() == pytest.approx(literal(batch, 0.2, 0.7, masked), rel=1e-5)


def test_one_row_of_eight_has_its_own_term_undivided() -> None:
    batch = keep_negatives(embedding_batch(8, 2), [4, 5])
    plain, both = (InfoNCELoss(0.2, own_negatives_weight=weight)(batch).loss for weight in (0.0, 1.0))
    cosines = torch.cat([batch.targets[2:3], batch.negatives]) @ batch.queries[2]
    expected = cross_entropy(cosines[None] / 0.2, torch.tensor([0]))
    assert (both - plain).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_query_whose_hard_negatives_are_all_left_out_has_none() -> None:
    batch = keep_negatives(embedding_batch(4, 1), [0, 3])
    batch.ids.negative_ids[1] = batch.ids.target_ids[3]
    found = InfoNCELoss(0.2, own_negatives_weight=1.0)(batch).loss.item()
    assert found == pytest.approx(literal(batch, 0.2, 1.0), rel=1e-5)


def test_where_every_query_has_hard_negatives_the_term_is_the_plain_mean_to_the_bit() -> None:
    batch = embedding_batch(9, 3)
    batch.queries.requires_grad_()
    loss = InfoNCELoss(0.05, own_negatives_weight=1.0)
    scores = loss.score(batch)
    few = scores.values.masked_fill(
        ~loss.own_negatives(scores, batch).scatter(1, scores.positive[:, None], True), -math.inf
    )
    plain, found = cross_entropy(few, scores.positive), loss.own_negatives_loss(scores, batch)
    assert torch.equal(found, plain)
    gradients = [torch.autograd.grad(each, batch.queries, retain_graph=True)[0] for each in (found, plain)]
    assert torch.equal(*gradients)


def test_no_hard_negatives_leave_a_finite_gradient() -> None:
    batch = without_negatives(embedding_batch(4, 1))
    batch.queries.requires_grad_()
    InfoNCELoss(0.1, own_negatives_weight=1.0)(batch).loss.backward()
    assert batch.queries.grad is not None and batch.queries.grad.isfinite().all()


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_the_papers_loss_leaves_no_candidate_out(kind: type[ContrastiveLoss]) -> None:
    batch = embedding_batch(6, 2, repeats=True)
    masked, plain = (kind(0.2, mask_false_negatives=mask).score(batch).values for mask in (True, False))  # type: ignore[call-arg]
    assert masked.isneginf().sum() == 6 and not plain.isneginf().any()
    assert InfoNCELoss(0.2, mask_false_negatives=False)(batch).loss.item() == pytest.approx(
        literal(batch, 0.2, 0.0, masked=False), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [0.001, 0.004, 1.5, 2.0])
def test_a_fixed_temperature_is_taken_as_it_is(temperature: float) -> None:
    batch = embedding_batch(4, 1)
    loss = InfoNCELoss(temperature)
    assert loss.temperature.item() == pytest.approx(temperature, rel=1e-6)
    cosines = batch.queries @ torch.cat([batch.targets, batch.negatives]).T
    expected = cross_entropy(cosines.double() / temperature, torch.arange(4))
    assert loss(batch).loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_fixed_temperature_is_its_options_whatever_weights_say(tmp_path) -> None:
    learned = InfoNCELoss(0.3, learn_temperature=True)
    torch.save(learned.state_dict(), tmp_path / "loss.ckpt")
    assert InfoNCELoss(0.002, weights=tmp_path / "loss.ckpt").temperature.item() == pytest.approx(0.002)
    started = InfoNCELoss(0.1, learn_temperature=True, weights=tmp_path / "loss.ckpt")
    assert started.temperature.item() == pytest.approx(0.3)


@pytest.mark.parametrize(("temperature", "bound"), [(0.001, 0.005), (3.0, 1.0)])
def test_weights_of_a_temperature_beyond_the_bounds_still_load(tmp_path, temperature: float, bound: float) -> None:
    torch.save({"log_temperature": torch.tensor(temperature).log()}, tmp_path / "old.ckpt")
    loss = InfoNCELoss(0.1, learn_temperature=True)
    load_weights(loss, tmp_path / "old.ckpt", "")
    assert loss.log_temperature.exp().item() == pytest.approx(bound)


@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
@pytest.mark.parametrize("bound", TEMPERATURE_BOUNDS)
@pytest.mark.parametrize("own_optimizer", [True, False])
def test_a_learned_temperature_comes_back_from_a_bound(
    kind: type[ContrastiveLoss], bound: float, own_optimizer: bool
) -> None:
    """Whichever optimizer: ours moves the parameter back after each step, another's still gets its gradient."""
    loss = MatryoshkaLoss(kind(bound, learn_temperature=True), [8])  # type: ignore[call-arg]
    inner = loss.loss
    assert isinstance(inner, ContrastiveLoss)
    outwards = -1.0 if bound < 0.5 else 1.0
    optimizer: torch.optim.Optimizer = (
        Optimization(0.1, 0.0, 0, "constant").configure(loss, 100)["optimizer"]
        if own_optimizer
        else torch.optim.SGD(loss.parameters(), 0.1)
    )
    for direction, steps in ((outwards, 5), (-outwards, 15)):
        for _ in range(steps):
            optimizer.zero_grad()
            (-direction * inner.temperature / bound).backward()
            optimizer.step()
            assert not own_optimizer or 0.00499 < inner.log_temperature.exp() < 1.00001
        assert (inner.temperature.item() == pytest.approx(bound)) == (direction == outwards)


def test_the_gradient_of_a_learned_temperature_at_a_bound_is_that_of_the_loss() -> None:
    batch = embedding_batch(6, 0)
    loss = InfoNCELoss(1.0, learn_temperature=True)
    loss(batch).loss.backward()
    cosines, log = (batch.queries @ batch.targets.T).double(), torch.zeros((), dtype=torch.double, requires_grad=True)
    cross_entropy(cosines / log.exp(), torch.arange(6)).backward()
    assert isinstance(loss.log_temperature, nn.Parameter) and loss.log_temperature.grad is not None
    assert log.grad is not None and loss.log_temperature.grad.item() == pytest.approx(log.grad.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("learned", [True, False])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float, learned: bool) -> None:
    with pytest.raises(VirtueError, match=rf"loss\.temperature is {temperature}, expected a positive number"):
        InfoNCELoss(temperature, learn_temperature=learned)


@pytest.mark.parametrize("temperature", [0.001, 2.0])
@pytest.mark.parametrize("kind", [InfoNCELoss, SigmoidLoss])
def test_a_learned_temperature_that_starts_beyond_its_bounds_is_refused(
    kind: type[ContrastiveLoss], temperature: float
) -> None:
    with pytest.raises(VirtueError, match=rf"loss\.temperature is {temperature}, expected 0\.005 to 1") as error:
        kind(temperature, learn_temperature=True)  # type: ignore[call-arg]
    assert "loss.learn_temperature" in str(error.value) and "\n" not in str(error.value)
