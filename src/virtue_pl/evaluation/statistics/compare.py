"""Comparison of runs: shares of right answers with their intervals, and differences to a reference.

What an interval is over, and the model of variance behind it: `virtue_pl.evaluation.statistics.intervals`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.evaluation.statistics.common_queries import Queries, Training, align, check_same_queries
from virtue_pl.evaluation.statistics.compared_run import ComparedRun, LeftOut
from virtue_pl.evaluation.statistics.compared_scores import ComparedScores
from virtue_pl.evaluation.statistics.intervals import LEVEL, Estimate
from virtue_pl.evaluation.statistics.summary import Chance
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import VirtueError

Estimates = dict[str, dict[str, dict[str, Estimate]]]
"""task -> run -> ranking -> estimate"""
Rows = dict[str, dict[tuple[str, str], list[Training]]]
"""run -> (task, ranking) -> for each training, its ranks by the query's key"""
RANKING = "hit@1"
"""The ranking of which there are means."""
METHOD = (
    "multi-reader multi-case variance (trainings nested in runs, queries crossed and clustered by image), Student's t"
)


@dataclass(frozen=True)
class Comparison:
    """Shares of runs, and differences to their references.

    runs: names in the given order. references: run -> the run that it is compared to, if any.
    means: benchmark -> run -> hit@1 over all tasks of the benchmark, where it has several.
    mean_differences: the differences of these. best: task, or "mean BENCHMARK" -> ranking -> the run whose share is
    above that of every other model, where all these differences exclude zero; a baseline that is no model never is.
    notes: sentences on what does not show in the figures. queries: which ones are compared. left_out: of each run, the
    number of queries that were not ranked, by task and reason.

    Example:
        >>> compare([virtue, crop]).differences["scar/ADE20K"]["crop"]["hit@1"].differs  # doctest: +SKIP
        True
    """

    runs: tuple[str, ...]
    shares: Estimates
    differences: Estimates
    references: dict[str, str]
    means: dict[str, dict[str, Estimate]]
    mean_differences: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    best: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    queries: Queries = "same"
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def lost(self, task: str) -> dict[str, Mapping[str, int]]:
        """Return what each run leaves out of a task, by reason."""
        return {name: found[task] for name, found in self.left_out.items() if task in found}

    def as_json(self) -> dict[str, Any]:
        """Return shares, differences, means and the interval's settings by name."""
        means, apart = (
            {benchmark: {name: found._asdict() for name, found in row.items()} for benchmark, row in rows.items()}
            for rows in (self.means, self.mean_differences)
        )
        return {
            "shares": estimates_as_json(self.shares),
            "differences": estimates_as_json(self.differences),
            "against": self.references,
            "means": means,
            "mean_differences": apart,
            "best": self.best,
            "notes": list(self.notes),
            "queries": self.queries,
            "left_out": self.left_out,
            "interval": {"level": LEVEL, "method": METHOD},
        }


def estimates_as_json(estimates: Estimates) -> dict[str, Any]:
    """Return estimates as mappings by name, for JSON."""
    return {
        task: {run: {ranking: found._asdict() for ranking, found in row.items()} for run, row in runs.items()}
        for task, runs in estimates.items()
    }


def compare(runs: Sequence[ComparedRun], queries: Queries = "same") -> Comparison:
    """Compare every run on every task and ranking that it has, and to its reference on those that both have.

    Raises VirtueError for a reference that is not among the runs, and where runs were tested on different queries,
    unless `queries` says which are compared then.
    """
    rows: Rows = {run.name: run.rows() for run in runs}
    references = {run.name: run.reference for run in runs if run.reference != run.name}
    for name, other in references.items():
        if other not in rows:
            raise VirtueError(f"{name} is to be compared to {other!r}, expected one of {', '.join(rows)}")
    shares: Estimates = {}
    differences: Estimates = {}
    best: dict[str, dict[str, str]] = {}
    for task, ranking in sorted({name for found in rows.values() for name in found}):
        compared = scores_of(runs, rows, [task], ranking, queries)
        for estimates, found in ((shares, compared.shares()), (differences, compared.differences())):
            for name, estimate in found.items():
                estimates.setdefault(task, {}).setdefault(name, {})[ranking] = estimate
        if first := compared.best():
            best.setdefault(task, {})[ranking] = first
    means = benchmark_scores(runs, rows, queries)
    best |= {f"mean {name}": {RANKING: first} for name, mean in means.items() if (first := mean.best())}
    return Comparison(
        tuple(rows),
        shares,
        differences,
        references,
        {name: mean.shares() for name, mean in means.items()},
        {name: found for name, mean in means.items() if (found := mean.differences())},
        best,
        tuple(notes_on(runs, rows, queries)),
        queries,
        {run.name: dict(run.left_out) for run in runs if run.left_out},
    )


def scores_of(
    runs: Sequence[ComparedRun], rows: Rows, tasks: Sequence[str], ranking: str, queries: Queries
) -> ComparedScores:
    """Return the scores of the runs that have all of the tasks, over these tasks together."""
    numbers: dict[tuple[str, ...], int] = {}
    chosen = [name for name, found in rows.items() if all((task, ranking) in found for task in tasks)]
    answers = []
    for task in tasks:
        found = {name: rows[name][task, ranking] for name in chosen}
        if queries == "same":
            check_same_queries(task, found, {run.name: run.fingerprints for run in runs})
        answers.append(align(found, queries, numbers))
    return ComparedScores(runs, answers)


def benchmark_scores(runs: Sequence[ComparedRun], rows: Rows, queries: Queries) -> dict[str, ComparedScores]:
    """Return the scores over all tasks of each benchmark that has several, of the runs that have all of them."""
    benchmarks: dict[str, list[str]] = {}
    for task in sorted({task for found in rows.values() for task, ranking in found if ranking == RANKING}):
        benchmarks.setdefault(benchmark_of(task), []).append(task)
    return {
        benchmark: scores_of(runs, rows, tasks, RANKING, queries)
        for benchmark, tasks in benchmarks.items()
        if len(tasks) > 1 and any(all((task, RANKING) in found for task in tasks) for found in rows.values())
    }


def notes_on(runs: Sequence[ComparedRun], rows: Rows, queries: Queries) -> Iterator[str]:
    """Yield sentences on what a comparison's figures do not show."""
    if queries == "shared":
        yield "compared on the queries that all runs share, of which n are left"
    if queries == "any":
        yield "unpaired: every run is on its own queries, which may differ in data and difficulty"
    modes = {run.name: run.mode for run in runs if not run.use_only_mode}
    if len(set(modes.values())) > 1:
        yield f"modes: {', '.join(f'{name} {mode}' for name, mode in modes.items())}"
    everything = {name for found in rows.values() for name in found}
    for name, found in rows.items():
        missing = sorted({task for task, _ in everything} - {task for task, _ in found})
        if missing:
            yield f"{name} was not ranked on {', '.join(missing)}"
        lists = sorted({f"{task} {ranking}" for task, ranking in everything - found.keys() if task not in missing})
        if lists:
            yield f"{name} has no {', '.join(lists)}"
    unrecorded = [name for name, found in rows.items() if not is_recorded(found)]
    if unrecorded:
        yield (
            f"{', '.join(unrecorded)}: predictions do not record images, so queries are taken as independent; test"
            " again for intervals clustered by image"
        )


def is_recorded(found: Mapping[tuple[str, str], Sequence[Training]]) -> bool:
    """Return whether a run's predictions record what its queries are of."""
    return all(row.content or row.image for trainings in found.values() for one in trainings for row in one.values())


def benchmark_of(task: str) -> str:
    """Return the benchmark of a task: "mmeb_mini/KindMini" -> "mmeb_mini"."""
    return task.rpartition("/")[0]


def mean_shares(shares: Estimates, prefix: str, ranking: str = RANKING) -> dict[str, float]:
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
        for task, values in report.get("chance", {}).items()
    }


def data_fingerprints(folder: str | Path) -> list[str]:
    """Return the fingerprints of the data that a run was tested on: one, unless its seeds had different data."""
    found = {report.get("context", {}).get("data_fingerprint") for report in read_reports(folder)}
    return sorted(found - {None})


def read_left_out(folder: str | Path) -> LeftOut:
    """Read from its report how many queries a run did not rank, by task and reason; of its seeds the largest."""
    found: dict[str, dict[str, int]] = {}
    for report in read_reports(folder):
        sets = report.get("sets", {})  # an evaluation's, by name
        for name, counts in report.get("left_out", {}).items():
            task = f"{sets[name]['benchmark']}/{name}" if name in sets else name
            counted = found.setdefault(task, {})
            counted |= {reason: max(count, counted.get(reason, 0)) for reason, count in counts.items()}
    return {task: counts for task, counts in found.items() if counts}


def setting_notes(folders: Mapping[str, str | Path]) -> Iterator[str]:
    """Yield a sentence for each setting of evaluations that differs between runs. folders: by the runs' names."""
    found = {name: [report.get("settings") for report in read_reports(folder)] for name, folder in folders.items()}
    recorded = {name: settings[0] for name, settings in found.items() if settings and settings[0]}
    for setting in dict.fromkeys(name for settings in recorded.values() for name in settings if name != "store"):
        values = {name: settings.get(setting) for name, settings in recorded.items()}
        if len(set(map(str, values.values()))) > 1:
            yield f"{setting}: {', '.join(f'{name} {value}' for name, value in values.items())}"


def read_reports(folder: str | Path) -> list[dict[str, Any]]:
    """Read the reports of a run's test, or of its seeds' tests. Raises VirtueError for one that is damaged."""
    return [read_report(file) for file in run_files(folder, "report.json")]


def read_report(file: Path) -> dict[str, Any]:
    """Return a report's content. Raises VirtueError for another file's."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VirtueError(f"{file} is no report that can be read ({error}): test the run again") from error
    mappings = ("chance", "context", "sets", "left_out")
    if not isinstance(found, dict) or not all(isinstance(found.get(name, {}), dict) for name in mappings):
        raise VirtueError(
            f"{file} is no report of a test, expected an object with chance and left_out: test the run again"
        )
    return found


def run_files(folder: str | Path, name: str) -> list[Path]:
    """Return a run's own file of that name, or those of its seeds."""
    own = Path(folder) / name
    return [own] if own.is_file() else sorted(Path(folder).glob(f"seed_*/{name}"))
