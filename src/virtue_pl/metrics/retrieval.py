"""The published retrieval metrics at several depths, of all queries at once, and their means across processes.

A query's metrics follow from which positions of its ranking are relevant, and from the number of relevant items, ranked
or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from virtue_pl.types import VirtueError

DEPTHS = (1, 5, 10)
METRICS = ("hit", "precision", "recall", "f1", "ndcg", "map", "mrr")
"""Names of the metrics of each depth k, in this order, written as "hit@k"."""


def metric_names(depths: Sequence[int] = DEPTHS) -> list[str]:
    """Return the names of all metrics, depth by depth."""
    return [f"{metric}@{depth}" for depth in depths for metric in METRICS]


def retrieval_metrics(
    relevant: Bool[Tensor, "queries positions"], num_relevant: Int[Tensor, " queries"], depths: Sequence[int] = DEPTHS
) -> Float[Tensor, "queries metrics"]:
    """Return every metric of every query in float64; columns are ordered as in `metric_names`.

    Relevance is yes or no, so nDCG's gain is 1. Precision divides by k, even where fewer are ranked; MAP by min(k,
    number of relevant), as the published evaluation does. A query without relevant items has 0 everywhere.

    Args:
        relevant: whether each position of the ranking is relevant, from the best to the worst; padding is not.
        num_relevant: the number of relevant items, those that are not ranked among them.
        depths: the k of the metrics.
    """
    positions = torch.arange(max(max(depths), relevant.shape[1]), device=relevant.device, dtype=torch.float64)
    gains = (
        relevant.new_zeros(len(relevant), len(positions))
        .index_copy(1, torch.arange(relevant.shape[1], device=relevant.device), relevant)
        .double()
    )
    found, discount = gains.cumsum(dim=1), 1 / torch.log2(positions + 2)
    gained, precise, first = (
        (gains * discount).cumsum(dim=1),
        (gains * found / (positions + 1)).cumsum(dim=1),
        (gains / (positions + 1)).cummax(dim=1).values,
    )
    ideal, total = discount.cumsum(dim=0), num_relevant.double()
    columns = []
    for depth in depths:
        hits, possible = found[:, depth - 1], num_relevant.clamp(min=1, max=depth)
        precision, recall = hits / depth, hits / total.clamp(min=1)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-300)
        ndcg, mean_precision = gained[:, depth - 1] / ideal[possible - 1], precise[:, depth - 1] / possible
        columns += [(hits > 0).double(), precision, recall, f1, ndcg, mean_precision, first[:, depth - 1]]
    return torch.stack(columns, dim=1)


def metrics_of_ranks(
    ranks: Int[Tensor, " queries"], depths: Sequence[int] = DEPTHS
) -> Float[Tensor, "queries metrics"]:
    """Return the `retrieval_metrics` of queries with one right candidate each, whose rank (from 0) is given."""
    positions = torch.arange(max(depths), device=ranks.device)
    return retrieval_metrics(ranks[:, None] == positions, torch.ones_like(ranks), depths)


@final
class RetrievalMetrics(Metric):
    """Means of the metrics over the queries of each of several sets; processes exchange sums and counts.

    Args:
        sets: names; `update` is given their indices.
        depths: the k of the metrics.

    Example:
        >>> metrics = RetrievalMetrics(["scar"], depths=(1,))
        >>> metrics.update(0, torch.tensor([0, 4]))
        >>> metrics.compute()["scar"]["hit@1"]
        0.5
    """

    higher_is_better = True
    full_state_update = False
    sums: Float[Tensor, "sets metrics"]
    counts: Int[Tensor, " sets"]

    def __init__(self, sets: Sequence[str], depths: Sequence[int] = DEPTHS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sets = tuple(sets)
        self.depths = tuple(depths)
        self.set_dtype(torch.float64)
        self.add_state(
            "sums",
            default=torch.zeros(len(self.sets), len(metric_names(depths)), dtype=torch.float64),
            dist_reduce_fx="sum",
        )
        self.add_state("counts", default=torch.zeros(len(self.sets), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, set_index: int, ranks: Int[Tensor, " queries"]) -> None:
        """Add queries of one set. ranks: of their right candidates, counted from 0."""
        if bool((ranks < 0).any()):
            raise VirtueError(f"{self.sets[set_index]}: a rank is {int(ranks.min())}, expected 0 or more")
        self.sums[set_index] += metrics_of_ranks(ranks, self.depths).sum(dim=0).to(self.sums.device)
        self.counts[set_index] += len(ranks)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return for each set its means by "metric@k", and its number of queries as "n"; empty sets are left out."""
        names = metric_names(self.depths)
        found: dict[str, dict[str, float]] = {}
        for name, sums, count in zip(self.sets, self.sums.tolist(), self.counts.tolist(), strict=True):
            if count:
                found[name] = {**{metric: value / count for metric, value in zip(names, sums, strict=True)}, "n": count}
        return found
