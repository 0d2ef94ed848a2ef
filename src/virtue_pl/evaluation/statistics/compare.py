"""Comparison of runs: shares of right answers with their intervals, and paired differences to a reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.evaluation.statistics.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    align_hits,
    difference,
    interval,
    mean_interval,
)
from virtue_pl.evaluation.statistics.summary import Chance
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import VirtueError

SET_BLIND = "set_blind"
"""Name of the mode that is reported beside every other."""
Estimates = dict[str, dict[str, dict[str, Estimate]]]
"""task -> run -> ranking -> estimate"""


@dataclass(frozen=True)
class ComparedRun:
    """A run in one evaluation mode: a row of the comparison.

    trainings: the ranks of each of its seeds; two runs that share this object are the same trainings in two modes.
    reference: name of the run whose share is subtracted; its own name for no comparison.
    use_only_mode: count a task that was ranked in one other mode alone in that mode, such as queries without a region.

    Example:
        >>> virtue = ComparedRun("virtue", read_run("runs/virtue"), mode="box", reference="virtue")  # doctest: +SKIP
        >>> crop = ComparedRun("crop", read_run("runs/crop"), mode="box", reference="virtue")
    """

    name: str
    trainings: tuple[RankRows, ...]
    mode: str
    reference: str
    use_only_mode: bool = False

    def ranks(self) -> dict[tuple[str, str], list[dict[str, int]]]:
        """Return (task, ranking) -> for each training, rank by the query's key.

        Raises VirtueError if nothing was ranked in the mode.
        """
        found: dict[tuple[str, str], list[dict[str, int]]] = {}
        modes = set()
        for training in self.trainings:
            groups = training.groups()
            chosen = self.modes(groups)
            for (task, mode, ranking), rows in groups.items():
                modes.add(mode)
                if mode == chosen.get(task):
                    found.setdefault((task, ranking), []).append({row.key: row.rank for row in rows})
        if not found:
            raise VirtueError(
                f"{self.name}: nothing was ranked in mode {self.mode!r}, expected one of {', '.join(sorted(modes))}"
            )
        return found

    def modes(self, groups: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """Return the mode in which each task counts. groups: (task, mode, ranking)."""
        ranked: dict[str, set[str]] = {}
        for task, mode, _ in groups:
            ranked.setdefault(task, set()).add(mode)
        alone = {
            task: next(iter(modes - {SET_BLIND}))
            for task, modes in ranked.items()
            if self.use_only_mode and len(modes - {SET_BLIND}) == 1
        }
        return alone | {task: self.mode for task, modes in ranked.items() if self.mode in modes}


class Comparison(NamedTuple):
    """Shares of runs, and differences to their references.

    runs: names in the given order. references: run -> the run that it is compared to, if any.
    means: benchmark -> run -> hit@1 over all tasks of the benchmark, where it has several.

    Example:
        >>> compare([virtue, crop]).differences["scar/ADE20K"]["crop"]["hit@1"].differs  # doctest: +SKIP
        True
    """

    runs: tuple[str, ...]
    shares: Estimates
    differences: Estimates
    references: dict[str, str]
    means: dict[str, dict[str, Estimate]]

    def as_json(self) -> dict[str, Any]:
        """Return shares, differences, means and the interval's settings by name."""
        return {
            "shares": estimates_as_json(self.shares),
            "differences": estimates_as_json(self.differences),
            "against": self.references,
            "means": {
                benchmark: {name: found._asdict() for name, found in row.items()}
                for benchmark, row in self.means.items()
            },
            "interval": {"level": LEVEL, "resamples": RESAMPLES},
        }


def estimates_as_json(estimates: Estimates) -> dict[str, Any]:
    """Return estimates as mappings by name, for JSON."""
    return {
        task: {run: {ranking: found._asdict() for ranking, found in row.items()} for run, row in runs.items()}
        for task, runs in estimates.items()
    }


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare every run on every task and ranking that it has, and to its reference on those that both have.

    Raises VirtueError for a reference that is not among the runs.
    """
    ranks = {run.name: run.ranks() for run in runs}
    trainings_of = {run.name: run.trainings for run in runs}
    references = {run.name: run.reference for run in runs if run.reference != run.name}
    for name, other in references.items():
        if other not in ranks:
            raise VirtueError(f"{name} is to be compared to {other!r}, expected one of {', '.join(ranks)}")
    shares: Estimates = {}
    differences: Estimates = {}
    for name, found in ranks.items():
        for (task, ranking), trainings in sorted(found.items()):
            shares.setdefault(task, {}).setdefault(name, {})[ranking] = interval(align_hits(trainings)[0])
            others = ranks[references[name]].get((task, ranking)) if name in references else None
            if others is not None:
                same = trainings_of[name] is trainings_of[references[name]]
                differences.setdefault(task, {}).setdefault(name, {})[ranking] = paired_difference(
                    trainings, others, same
                )
    return Comparison(tuple(ranks), shares, differences, references, benchmark_means(ranks))


def benchmark_means(
    ranks: Mapping[str, Mapping[tuple[str, str], list[dict[str, int]]]], ranking: str = "hit@1"
) -> dict[str, dict[str, Estimate]]:
    """Return benchmark -> run -> the mean over the benchmark's tasks, of runs that have all of them.

    ranks: run -> the result of `ComparedRun.ranks`.
    """
    benchmarks: dict[str, list[str]] = {}
    for task in sorted({task for found in ranks.values() for task, name in found if name == ranking}):
        benchmarks.setdefault(benchmark_of(task), []).append(task)
    return {
        benchmark: {
            name: mean_interval([align_hits(found[task, ranking])[0] for task in tasks])
            for name, found in ranks.items()
            if all((task, ranking) in found for task in tasks)
        }
        for benchmark, tasks in benchmarks.items()
        if len(tasks) > 1
    }


def benchmark_of(task: str) -> str:
    """Return the benchmark of a task: "mmeb_mini/KindMini" -> "mmeb_mini"."""
    return task.rpartition("/")[0]


def mean_shares(shares: Estimates, prefix: str, ranking: str = "hit@1") -> dict[str, float]:
    """Return every run's unweighted mean over the tasks whose name starts with `prefix`, as MMEB is reported.

    Runs that lack a task are left out.
    """
    tasks = [rows for task, rows in shares.items() if task.startswith(prefix)]
    runs = [
        name
        for name in dict.fromkeys(name for rows in tasks for name in rows)
        if all(ranking in rows.get(name, {}) for rows in tasks)
    ]
    return {name: sum(rows[name][ranking].mean for rows in tasks) / len(tasks) for name in runs}


def paired_difference(trainings: list[dict[str, int]], others: list[dict[str, int]], same: bool) -> Estimate:
    """Return the difference between two runs' shares over the queries that both have ranked.

    same: both are the same trainings, in two modes. Their seeds are drawn independently all the same where one was not
    ranked in both modes.
    """
    first, second = align_hits(trainings, others)
    return difference(first, second, same_trainings=same and len(first) == len(second))


def read_run(folder: str | Path) -> tuple[RankRows, ...]:
    """Read the ranks of a tested run: from its own folder, or from the folders of its seeds, `seed_*`, in it.

    Raises VirtueError where there are none.
    """
    files = run_files(folder, "predictions.jsonl")
    if not files:
        raise VirtueError(
            f"{folder} holds no predictions.jsonl, nor do folders seed_* in it: give the folder of a run that was"
            " tested"
        )
    return tuple(read_predictions(file) for file in files)


def read_chance(folders: Iterable[str | Path]) -> Chance:
    """Read chance levels from the runs' own reports."""
    return {
        task: values
        for folder in folders
        for report in read_reports(folder)
        for task, values in report["chance"].items()
    }


def data_fingerprints(folder: str | Path) -> list[str]:
    """Return the fingerprints of the data that a run was tested on: one, unless its seeds had different data."""
    found = {report.get("context", {}).get("data_fingerprint") for report in read_reports(folder)}
    return sorted(found - {None})


def read_reports(folder: str | Path) -> list[dict[str, Any]]:
    """Read the reports of a run's test, or of its seeds' tests."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in run_files(folder, "report.json")]


def run_files(folder: str | Path, name: str) -> list[Path]:
    """Return a run's own file of that name, or those of its seeds."""
    own = Path(folder) / name
    return [own] if own.is_file() else sorted(Path(folder).glob(f"seed_*/{name}"))
