"""Means over sets as in the papers, and the papers' scores, which are in `published_results.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from virtue_pl.types import SetDescription

GROUPS = {"scar": 5, "mmeb": 36, "scar_mini": 2, "mmeb_mini": 8}
"""Number of sets of each benchmark."""
MEMBERS = {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4, "IND": 20, "OOD": 16, "all": 36}
"""Number of sets of each group of MMEB."""
ALL = "all"


class Average(NamedTuple):
    """Unweighted mean of each metric over the ranked sets of a group.

    sets: number of sets that were ranked. of: number of sets in the group.

    Example:
        >>> Average("scar", "all", {"hit@1": 0.5}, sets=4, of=5).metrics["hit@1"]
        0.5
    """

    benchmark: str
    group: str
    metrics: dict[str, float]
    sets: int
    of: int


def averages(found: Mapping[str, Mapping[str, float]], about: Sequence[SetDescription]) -> list[Average]:
    """Return the means over each meta-task, IND, OOD and all of each benchmark.

    An overall mean is over sets, not over meta-tasks, as in VLM2Vec and VIRTUE. found: metrics by set.
    """
    result = []
    for benchmark in dict.fromkeys(each.benchmark for each in about):
        members = [each for each in about if each.benchmark == benchmark and each.name in found]
        metas, distributions = (
            list(dict.fromkeys(getattr(each, name) for each in members)) for name in ("meta_task", "distribution")
        )
        groups: dict[str, list[SetDescription]] = {}
        if benchmark.startswith("mmeb"):
            groups |= {meta: [each for each in members if each.meta_task == meta] for meta in metas}
            groups |= {
                kind: [each for each in members if each.distribution == kind] for kind in sorted(distributions) if kind
            }
        groups[ALL] = members
        result += [
            average(benchmark, group, [found[each.name] for each in chosen])
            for group, chosen in groups.items()
            if chosen
        ]
    return result


def average(benchmark: str, group: str, rows: Sequence[Mapping[str, float]]) -> Average:
    """Return the mean of one group; `rows` are its sets' metrics."""
    names = [name for name in rows[0] if name != "n"]
    of = MEMBERS[group] if benchmark == "mmeb" else GROUPS.get(benchmark, len(rows)) if group == ALL else len(rows)
    return Average(
        benchmark, group, {name: sum(row[name] for row in rows) / len(rows) for name in names}, len(rows), of
    )


@cache
def published_results() -> dict[str, dict[str, dict[str, float]]]:
    """Return published scores: benchmark -> model -> name of a set or a group -> precision@1 (hit@1), in [0, 1]."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for row in csv.DictReader(
        files(__package__).joinpath("published_results.csv").read_text(encoding="utf-8").splitlines()
    ):
        scores.setdefault(row["benchmark"], {}).setdefault(row["model"], {})[row["name"]] = float(row["score"]) / 100
    return scores


def averages_as_json(found: Sequence[Average]) -> dict[str, Any]:
    """Return averages for JSON: benchmark -> group -> metrics and numbers of sets."""
    result: dict[str, Any] = {}
    for each in found:
        result.setdefault(each.benchmark, {})[each.group] = {**each.metrics, "sets": each.sets, "of": each.of}
    return result
