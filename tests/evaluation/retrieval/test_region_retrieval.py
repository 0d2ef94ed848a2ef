"""Retrieval of regions against torchmetrics and literal loops; own images, ties, chance, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from virtue_pl.evaluation.retrieval import region_retrieval
from virtue_pl.evaluation.retrieval.region_retrieval import (
    METRICS,
    RetrievalItems,
    chance_of,
    findable_queries,
    nearest_items,
    score_found,
    score_retrieval,
)
from virtue_pl.types import VirtueError


def draw(count: int, names: int, images: int, seed: int = 0) -> RetrievalItems:
    """Return random unit vectors of regions, whose names and images are random, too."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    named = tuple(frozenset({f"name {random.integers(names)}"}) for _ in range(count))
    return RetrievalItems(vectors, named, tuple(f"image {random.integers(images)}" for _ in range(count)))


@pytest.mark.parametrize(("count", "names", "images"), [(60, 6, 25), (40, 15, 40), (9, 2, 5)])
def test_metrics_are_those_of_torchmetrics(
    monkeypatch: pytest.MonkeyPatch, count: int, names: int, images: int
) -> None:
    monkeypatch.setattr(region_retrieval, "QUERIES_AT_ONCE", 7)
    items = draw(count, names, images)
    rows = findable_queries(items, items)
    found = score_retrieval(items.select(rows), items)
    assert 0 < len(rows) == len(found.values)
    for row, values in zip(rows, found.values, strict=True):
        others = [item for item in range(count) if items.images[item] != items.images[row]]
        cosines = items.vectors[others].astype(np.float64) @ items.vectors[row].astype(np.float64)
        scores = torch.from_numpy(cosines + 2)  # torchmetrics takes nothing below zero for relevant
        relevant = torch.tensor([items.names[item] == items.names[row] for item in others])
        expected = [
            retrieval_hit_rate(scores, relevant, top_k=1),
            retrieval_hit_rate(scores, relevant, top_k=min(10, len(others))),
            retrieval_average_precision(scores, relevant),
        ]
        assert values == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_a_region_of_the_own_image_is_no_candidate() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    names = tuple(frozenset({name}) for name in ("owl", "owl", "fox", "owl"))
    items = RetrievalItems(vectors, names, ("a", "a", "b", "c"))
    assert findable_queries(items, items) == [0, 1, 3]
    assert nearest_items(items, items) == [[3, 2], [3, 2], [3, 0, 1], [2, 0, 1]]
    found = score_retrieval(items.select([0, 3]), items)
    assert found.values[0] == pytest.approx([1, 1, 1])
    assert found.values[1] == pytest.approx([0, 1, (1 / 2 + 2 / 3) / 2])


def test_equal_scores_find_nothing_first() -> None:
    items = RetrievalItems(
        np.ones((12, 1), np.float32), (frozenset({"owl"}),) * 2 + (frozenset({"fox"}),) * 10, tuple("abcdefghijkl")
    )
    found = score_retrieval(items.select([0]), items)
    assert found.values[0] == pytest.approx([0, 0, 1 / 11])


def test_a_document_of_several_names_answers_each() -> None:
    queries = RetrievalItems(np.eye(2, dtype=np.float32), (frozenset({"owl"}), frozenset({"fox"})), ("a", "b"))
    both = RetrievalItems(np.array([[0.6, 0.8]], np.float32), (frozenset({"owl", "fox"}),), ("c",))
    assert score_retrieval(queries, both).values.tolist() == [[1.0, 1.0, 1.0]] * 2


def test_chance_is_the_mean_over_random_orders() -> None:
    random = np.random.default_rng(0)
    for count, right in ((40, 3), (12, 12), (15, 1), (9, 4)):
        relevant = np.arange(count) < right
        drawn = []
        for _ in range(4000):
            order = relevant[random.permutation(count)]
            precise = (np.cumsum(order) / np.arange(1, count + 1))[order]
            drawn.append([order[0], order[:10].any(), precise.mean()])
        expected = chance_of(np.array([count]), np.array([right]))[0]
        assert np.mean(drawn, axis=0) == pytest.approx(expected, abs=0.025)


def test_hits_of_an_index_are_scored_as_exact_ones() -> None:
    items = draw(80, 8, 30, seed=3)
    chosen = items.select(findable_queries(items, items))
    exact = score_retrieval(chosen, items)
    given = score_found(chosen, items, nearest_items(chosen, items))
    assert np.array_equal(given.values[:, :2], exact.values[:, :2]) and np.isnan(given.values[:, 2]).all()
    assert np.array_equal(given.chance, exact.chance)
    own = [[row for row in range(80) if items.images[row] == image] for image in chosen.images]
    with_own = [[*its_own, *found] for its_own, found in zip(own, nearest_items(chosen, items), strict=True)]
    assert np.array_equal(score_found(chosen, items, with_own).values[:, :2], exact.values[:, :2])
    with pytest.raises(VirtueError, match="an index gave 3 candidates of other images, expected 10"):
        score_found(chosen, items, [found[:3] for found in nearest_items(chosen, items)])


def test_what_cannot_be_scored_is_told() -> None:
    items = draw(6, 2, 6)
    with pytest.raises(VirtueError, match="found 6 vectors, 5 names and 6 images, expected as many of each"):
        RetrievalItems(items.vectors, items.names[:5], items.images)
    lonely = RetrievalItems(items.vectors[:1], (frozenset({"unseen"}),), ("x",))
    with pytest.raises(VirtueError, match="query 0 has nothing to find"):
        score_retrieval(lonely, items)
    with pytest.raises(VirtueError, match="query 0 has 2 names, expected one"):
        score_retrieval(RetrievalItems(items.vectors[:1], (frozenset({"a", "b"}),), ("x",)), items)
    assert METRICS == ("hit@1", "hit@10", "map")
