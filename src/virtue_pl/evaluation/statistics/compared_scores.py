"""Scores of several runs on the same task, or the same tasks: shares, differences, and the one above all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from virtue_pl.evaluation.statistics.common_queries import TaskAnswers
from virtue_pl.evaluation.statistics.compared_run import ComparedRun
from virtue_pl.evaluation.statistics.intervals import Estimate, difference_estimate, share_estimate
from virtue_pl.evaluation.statistics.scores import Scores, score
from virtue_pl.types import VirtueError


class ComparedScores:
    """Scores of those of the runs that have answers in all of some tasks.

    A run with one training borrows the spread of the run that it is compared to; two of them borrow that of all further
    runs with several trainings, each training once, whatever the modes it stands in.

    Args:
        runs: all runs of a comparison.
        tasks: for each task, the answers by run.

    Example:
        >>> ComparedScores([virtue, crop], [align(rows)]).differences()["crop"].differs  # doctest: +SKIP
        True
    """

    def __init__(self, runs: Sequence[ComparedRun], tasks: Sequence[Mapping[str, TaskAnswers]]) -> None:
        self.runs = {run.name: run for run in runs if all(run.name in task for task in tasks)}
        size = 1 + max(int(found.images.max()) for task in tasks for found in task.values())
        self.scores = {name: scored(name, [task[name] for task in tasks], size) for name in self.runs}

    def shares(self) -> dict[str, Estimate]:
        """Return every run's share of right answers."""
        return {name: share_estimate(found) for name, found in self.scores.items()}

    def differences(self) -> dict[str, Estimate]:
        """Return the difference of every run to its reference, where both have answers."""
        pairs = {name: run.reference for name, run in self.runs.items() if run.reference != name}
        return {name: self.difference(name, other) for name, other in pairs.items() if other in self.runs}

    def difference(self, name: str, other: str) -> Estimate:
        """Return one run's share less another's."""
        first, second = self.scores[name], self.scores[other]
        one, two = self.runs[name].trainings, self.runs[other].trainings
        same = one is two and first.trainings == second.trainings
        return difference_estimate(first, second, self.others(name, other), same_trainings=same)

    def others(self, *names: str) -> list[Scores]:
        """Return the scores of models that are not named, trainings that stand in several modes once."""
        distinct = {
            id(run.trainings): name
            for name, run in reversed(self.runs.items())
            if run.is_model and all(run.trainings is not self.runs[other].trainings for other in names)
        }
        return [self.scores[name] for name in distinct.values()]

    def best(self) -> str | None:
        """Return the model that is above every other one by intervals that exclude zero; None without one."""
        models = [name for name, run in self.runs.items() if run.is_model]
        first = max(models, key=lambda name: self.scores[name].means.mean(), default=None)
        others = [name for name in models if name != first]
        return first if first and others and all(self.difference(first, name).differs for name in others) else None


def scored(name: str, tasks: Sequence[TaskAnswers], num_images: int) -> Scores:
    """Return the scores of a run over its tasks. Raises VirtueError where a training lacks one of them."""
    trainings = sorted({len(task.answers) for task in tasks})
    if len(trainings) > 1:
        raise VirtueError(
            f"{name}: its tasks were ranked by {' and '.join(map(str, trainings))} of its trainings, expected all of"
            " them to be tested on the same tasks"
        )
    return score([task.answers for task in tasks], [task.images for task in tasks], num_images)
