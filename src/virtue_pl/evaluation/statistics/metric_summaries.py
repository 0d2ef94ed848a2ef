"""Standard errors and chance levels of an evaluation's metrics, of each set and of means over sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float

from virtue_pl.evaluation.statistics.averages import ALL, Average
from virtue_pl.evaluation.statistics.intervals import Estimate, interval, standard_error
from virtue_pl.evaluation.statistics.scores import score
from virtue_pl.evaluation.statistics.summary import SET_BLIND, image_numbers
from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.metrics.retrieval import metric_names, metrics_of_ranks
from virtue_pl.types import SetDescription

NAMES = tuple(metric_names())


@dataclass(frozen=True)
class MetricSummary:
    """Metrics of one set, or of a mean over sets, beside their values.

    errors: metric -> standard error over queries, clustered by image; None where all queries are of one image.
    chance: metric -> expected value of a random ranking; 1 where the lists are too short for it to be anything else.

    Example:
        >>> MetricSummary({"hit@1": 0.01}, {"hit@1": 0.1}).chance["hit@1"]
        0.1
    """

    errors: dict[str, float | None]
    chance: dict[str, float]


def summarise_metrics(ranks: RankRows, sets: Sequence[SetDescription]) -> dict[str, MetricSummary]:
    """Return the summary of each set that was ranked, by its name."""
    rows = rows_of_sets(ranks, sets)
    return {name: summary_of([found]) for name, found in rows.items()}


def summarise_mean(mean: Average, ranks: RankRows, sets: Sequence[SetDescription]) -> MetricSummary:
    """Return the summary of an average over sets, whose images may be in several of them."""
    groups = (lambda about: about.meta_task, lambda about: about.distribution, lambda about: ALL)
    chosen = [each for each in sets if each.benchmark == mean.benchmark and mean.group in {of(each) for of in groups}]
    return summary_of(list(rows_of_sets(ranks, chosen).values()))


def hit_estimates(ranks: RankRows, sets: Sequence[SetDescription]) -> dict[str, Estimate]:
    """Return the share of each set's queries whose right candidate came first, with its interval, by the set."""
    return {
        name: interval(np.array([[row.rank == 0 for row in rows]]), image_numbers(rows))
        for name, rows in rows_of_sets(ranks, sets).items()
    }


def rows_of_sets(ranks: RankRows, sets: Sequence[SetDescription]) -> dict[str, list[RankRow]]:
    """Return the ranks among all candidates, by set; those of the set-blind baseline only where there are no others."""
    found: dict[str, list[RankRow]] = {}
    tasks = {f"{each.benchmark}/{each.name}": each.name for each in sets}
    groups = sorted(ranks.groups().items(), key=lambda group: group[0][1] != SET_BLIND)
    for (task, _, ranking), rows in groups:
        if task in tasks and ranking == "hit@1":
            found[tasks[task]] = rows
    return {each.name: found[each.name] for each in sets if each.name in found}


def summary_of(sets: Sequence[Sequence[RankRow]]) -> MetricSummary:
    """Return the summary of the unweighted mean over the sets."""
    numbers = np.split(image_numbers([row for rows in sets for row in rows]), np.cumsum([len(rows) for rows in sets]))
    values = [metrics_of_ranks(torch.tensor([row.rank for row in rows])).numpy().T[:, None] for rows in sets]
    scores = score(values, numbers[: len(sets)])
    errors = standard_error(scores)
    chance = np.mean([np.mean([chance_of(row.candidates) for row in rows], axis=0) for rows in sets], axis=0).tolist()
    return MetricSummary(
        dict(zip(NAMES, [None] * len(NAMES) if errors is None else errors.tolist(), strict=True)),
        dict(zip(NAMES, chance, strict=True)),
    )


@cache
def chance_of(candidates: int) -> Float[np.ndarray, " metrics"]:
    """Return the expected metrics of a random ranking of one right candidate among so many."""
    return metrics_of_ranks(torch.arange(candidates)).mean(dim=0).numpy()


def summaries_as_json(found: Mapping[str, MetricSummary]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return summaries for JSON: name -> "standard_error" and "chance" -> metric -> value."""
    return {name: {"standard_error": dict(each.errors), "chance": dict(each.chance)} for name, each in found.items()}
