"""Retrieval of regions: every other image's regions are ranked for a query, and those of the same name are relevant.

Regions of the query's own image are no candidates. Of equal scores a relevant candidate is ranked last, so that a
model that scores all alike finds nothing. Scores are added up in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from virtue_pl.metrics.retrieval import metric_names, retrieval_metrics
from virtue_pl.types import VirtueError

METRICS = ("hit@1", "hit@10", "map")
"""Names of a query's metrics: whether a relevant candidate is first, or among the first ten (which retrieval of
instances calls recall@1 and recall@10), and the average precision over all candidates.
"""
DEPTHS = (1, 10)
QUERIES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class RetrievalItems:
    """Embedded regions or images.

    vectors: unit embeddings. names: the objects in each, of which a query has one. images: the key of each one's image.

    Raises VirtueError for as many vectors, names and images as differ.

    Example:
        >>> items = RetrievalItems(np.eye(2, dtype=np.float32), (frozenset({"owl"}),) * 2, ("a.jpg", "b.jpg"))
        >>> len(items)
        2
    """

    vectors: Float[np.ndarray, "items dim"]
    names: tuple[frozenset[str], ...]
    images: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.vectors) == len(self.names) == len(self.images):
            raise VirtueError(
                f"found {len(self.vectors)} vectors, {len(self.names)} names and {len(self.images)} images, expected as"
                " many of each"
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def select(self, rows: Sequence[int]) -> RetrievalItems:
        """Return some of the items, in the given order."""
        return RetrievalItems(
            self.vectors[list(rows)], tuple(self.names[row] for row in rows), tuple(self.images[row] for row in rows)
        )


class RetrievalScores(NamedTuple):
    """Metrics of each query, one column for each of `METRICS`, and what a random ranking is expected to have.

    map is NaN where only the first candidates were ranked.

    Example:
        >>> RetrievalScores(np.ones((1, 3)), np.full((1, 3), 0.1)).values.mean(axis=0)
        array([1., 1., 1.])
    """

    values: Float[np.ndarray, "queries metrics"]
    chance: Float[np.ndarray, "queries metrics"]


def findable_queries(queries: RetrievalItems, gallery: RetrievalItems) -> list[int]:
    """Return the queries that have something to find: an item of their name in another image."""
    found = []
    for start, relevant, _ in candidate_blocks(queries, gallery):
        found += [start + row for row in relevant.any(dim=1).nonzero().flatten().tolist()]
    return found


def score_retrieval(queries: RetrievalItems, gallery: RetrievalItems) -> RetrievalScores:
    """Return the metrics of each query by exact search among all of the gallery.

    Raises VirtueError for a query without a relevant candidate (see `findable_queries`).
    """
    vectors = torch.from_numpy(gallery.vectors).double()
    values, expected = [], []
    for start, relevant, candidates in candidate_blocks(queries, gallery):
        scores = torch.from_numpy(queries.vectors[start : start + len(relevant)]).double() @ vectors.T
        ranked = rank_relevant(scores.masked_fill(~candidates, float("-inf")), relevant)
        values.append(metrics_of_ranking(ranked, relevant.sum(dim=1)))
        expected.append(chance_of(candidates.sum(dim=1).numpy(), relevant.sum(dim=1).numpy()))
    found = RetrievalScores(np.concatenate(values), np.concatenate(expected))
    lost = np.flatnonzero(~(found.chance[:, -1] > 0))
    if len(lost):
        raise VirtueError(f"query {lost[0]} has nothing to find: no item of its name is in another image")
    return found


def score_found(
    queries: RetrievalItems, gallery: RetrievalItems, found: Sequence[Sequence[int]], depth: int = DEPTHS[-1]
) -> RetrievalScores:
    """Return the metrics of each query whose first candidates an index has found, best first; map is NaN.

    found: for each query, items of the gallery, of which those of its own image are passed over. Raises VirtueError
    where fewer than `depth` are left of more, so that a hit among them would be missed.
    """
    rows, values, expected = iter(found), [], []
    for _, relevant, candidates in candidate_blocks(queries, gallery):
        for right, valid in zip(relevant, candidates, strict=True):
            kept = [item for item in next(rows) if valid[item]]
            if len(kept) < min(depth, int(valid.sum())):
                raise VirtueError(f"an index gave {len(kept)} candidates of other images, expected {depth}")
            ranked = right[kept][None]
            metrics = metrics_of_ranking(ranked, right.sum()[None])
            values.append(np.where(np.array(METRICS) == "map", np.nan, metrics[0]))
        expected.append(chance_of(candidates.sum(dim=1).numpy(), relevant.sum(dim=1).numpy()))
    return RetrievalScores(np.stack(values), np.concatenate(expected))


def nearest_items(queries: RetrievalItems, gallery: RetrievalItems, top: int = DEPTHS[-1]) -> list[list[int]]:
    """Return the items of other images that are nearest to each query, best first, by exact search."""
    vectors = torch.from_numpy(gallery.vectors).double()
    found: list[list[int]] = []
    for start, relevant, candidates in candidate_blocks(queries, gallery):
        scores = torch.from_numpy(queries.vectors[start : start + len(relevant)]).double() @ vectors.T
        ranked = scores.masked_fill(~candidates, float("-inf")).argsort(dim=1, descending=True, stable=True)
        best = ranked[:, :top]
        found += [
            [item for item in row if valid[item]] for row, valid in zip(best.tolist(), candidates.tolist(), strict=True)
        ]
    return found


def candidate_blocks(
    queries: RetrievalItems, gallery: RetrievalItems
) -> Iterator[tuple[int, Bool[Tensor, "queries items"], Bool[Tensor, "queries items"]]]:
    """Yield blocks of queries: the first one's number, which items are relevant to each, and which are candidates.

    Raises VirtueError for a query that does not have one name.
    """
    numbers: dict[str, int] = {}
    images: dict[str, int] = {}
    members = [[numbers.setdefault(name, len(numbers)) for name in names] for names in gallery.names]
    holds = torch.zeros(len(numbers) + 1, len(gallery), dtype=torch.bool)
    for item, its_names in enumerate(members):
        holds[its_names, item] = True
    of_image = torch.tensor([images.setdefault(image, len(images)) for image in gallery.images])
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = range(start, min(start + QUERIES_AT_ONCE, len(queries)))
        candidates = torch.tensor([images.get(queries.images[row], -1) for row in rows])[:, None] != of_image[None]
        relevant = holds[[numbers.get(only_name(queries, row), len(numbers)) for row in rows]] & candidates
        yield start, relevant, candidates


def only_name(queries: RetrievalItems, row: int) -> str:
    """Return the name of a query. Raises VirtueError where it has none, or several."""
    names = queries.names[row]
    if len(names) != 1:
        raise VirtueError(f"query {row} has {len(names)} names, expected one")
    return next(iter(names))


def rank_relevant(
    scores: Float[Tensor, "queries items"], relevant: Bool[Tensor, "queries items"]
) -> Bool[Tensor, "queries items"]:
    """Return whether each position of each ranking is relevant, from the best score on; relevant ones last of equal."""
    last = relevant.long().argsort(dim=1, stable=True)
    order = last.gather(1, scores.gather(1, last).argsort(dim=1, descending=True, stable=True))
    return relevant.gather(1, order)


def metrics_of_ranking(
    ranked: Bool[Tensor, "queries positions"], num_relevant: Int[Tensor, " queries"]
) -> Float[np.ndarray, "queries metrics"]:
    """Return `METRICS` of rankings, of which map is over the positions that are given."""
    depths = (*DEPTHS, max(*DEPTHS, ranked.shape[1]))
    wanted = [*(f"hit@{depth}" for depth in DEPTHS), f"map@{depths[-1]}"]
    names = metric_names(depths)
    columns = [names.index(name) for name in wanted]
    return retrieval_metrics(ranked, num_relevant, depths)[:, columns].numpy()


def chance_of(
    candidates: Int[np.ndarray, " queries"], relevant: Int[np.ndarray, " queries"]
) -> Float[np.ndarray, "queries metrics"]:
    """Return the expected `METRICS` of a random order of so many candidates, of which so many are relevant.

    hit@k is 1 - C(N - R, k) / C(N, k). The average precision is (H_N + (N - H_N)(R - 1) / (N - 1)) / N: given that
    position i is relevant, each of the i - 1 before it is so with (R - 1) / (N - 1).
    """
    count, right = candidates.astype(np.float64), relevant.astype(np.float64)
    columns = []
    for depth in DEPTHS:
        drawn = np.arange(depth)
        missed = np.clip((count - right)[:, None] - drawn, 0, None) / np.clip(count[:, None] - drawn, 1, None)
        columns.append(1 - missed.prod(axis=1))
    harmonic = np.cumsum(1 / np.arange(1, int(candidates.max(initial=1)) + 1))[np.clip(candidates, 1, None) - 1]
    further = (count - harmonic) * (right - 1) / np.clip(count - 1, 1, None)
    columns.append(np.where(right > 0, (harmonic + further) / np.clip(count, 1, None), 0.0))
    return np.stack(columns, axis=1)
