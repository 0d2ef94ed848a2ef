"""The queries that runs are compared on: whether all have the same ones, and their answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from virtue_pl.evaluation.statistics.scores import Answers, Images
from virtue_pl.metrics.ranking import RankRow
from virtue_pl.types import VirtueError

Queries = Literal["same", "shared", "any"]
"""same: all runs must have the same ones. shared: those that all runs have. any: each run its own, unpaired."""
Training = Mapping[str, RankRow]
"""The ranks of one training in one task, mode and ranking, by the query's key."""


class TaskAnswers(NamedTuple):
    """Answers of a run's trainings in a task: whether each query was right, one row a training; its image's number.

    Example:
        >>> TaskAnswers(np.array([[True, False]]), np.array([0, 1])).answers.mean()
        np.float64(0.5)
    """

    answers: Answers
    images: Images


def align(
    runs: Mapping[str, Sequence[Training]], queries: Queries = "same", numbers: dict[tuple[str, ...], int] | None = None
) -> dict[str, TaskAnswers]:
    """Return every run's answers in one task; in "same" and "shared", column q is the same query in all.

    numbers: image -> its number, which grows; tasks that share it have their images in common. In "any", a query
    without a recorded image has one of its own in every run.
    """
    if queries not in get_args(Queries):
        raise VirtueError(f"queries {queries!r}, expected one of {', '.join(get_args(Queries))}")
    numbers = {} if numbers is None else numbers
    own = {name: sorted(set.intersection(*map(set, trainings))) for name, trainings in runs.items()}
    recorded = {name: images_of(trainings) for name, trainings in runs.items()}
    if queries != "any":
        everything = [training for trainings in runs.values() for training in trainings]
        own = dict.fromkeys(runs, shared_keys(everything))
        recorded = dict.fromkeys(runs, images_of(everything))
    found = {}
    for name, trainings in runs.items():
        answers = np.array([[training[key].rank == 0 for key in own[name]] for training in trainings])
        alone = (name,) if queries == "any" else ()
        task = next(iter(trainings[0].values())).task
        images = [
            ("image", recorded[name][key]) if key in recorded[name] else ("query", task, key, *alone)
            for key in own[name]
        ]
        found[name] = TaskAnswers(answers, np.array([numbers.setdefault(image, len(numbers)) for image in images]))
    return found


def images_of(trainings: Sequence[Training]) -> dict[str, str]:
    """Return the image of every query that any of the trainings recorded one of, by the query's key."""
    return {key: row.image for training in reversed(trainings) for key, row in training.items() if row.image}


def shared_keys(trainings: Sequence[Training]) -> list[str]:
    """Return the keys, sorted, under which all trainings have the same query. Raises VirtueError if there is none."""
    first, *others = trainings
    keys = sorted(
        key for key, row in first.items() if all(key in other and not is_another(row, other[key]) for other in others)
    )
    if not keys:
        counts = ", ".join(str(len(training)) for training in trainings)
        raise VirtueError(
            f"nothing to compare: the trainings ranked {counts} samples and share no query; test all on the same data"
        )
    return keys


def is_another(first: RankRow, second: RankRow) -> bool:
    """Return whether two rows of one key are certainly of different queries, or different candidates."""
    recorded = bool(first.content and second.content)
    return first.candidates != second.candidates or (recorded and first.content != second.content)


def check_same_queries(
    task: str, runs: Mapping[str, Sequence[Training]], fingerprints: Mapping[str, Sequence[str]]
) -> None:
    """Raise VirtueError where two trainings ranked different queries of a task, or the same among other candidates.

    fingerprints: of the data of each run's tests, which count where predictions do not record what they are of.
    """
    named = [(name, training) for name, trainings in runs.items() for training in trainings]
    (name, first), *others = named
    for other_name, other in others:
        for problem in differences_of_data(first, other):
            raise VirtueError(refusal(task, name, other_name, problem))
    if all(row.content for _, training in named for row in training.values()):
        return
    recorded = [(name, found) for name in runs for found in sorted(fingerprints.get(name, ()))]
    for other_name, other_print in recorded[1:]:
        if other_print != recorded[0][1]:
            prints = f"data with the fingerprints {recorded[0][1][:16]} and {other_print[:16]}"
            raise VirtueError(refusal(task, recorded[0][0], other_name, prints))


def differences_of_data(first: Training, other: Training) -> Iterator[str]:
    """Yield what is not the same in two trainings' queries."""
    if first.keys() != other.keys():
        yield f"{len(first)} and {len(other)} queries, {len(first.keys() & other.keys())} of them the same"
        return
    lengths = [(first[key].candidates, other[key].candidates) for key in first]
    if any(one != two for one, two in lengths):
        one, two = next(pair for pair in lengths if pair[0] != pair[1])
        yield f"{one} and {two} candidates"
    elif any(is_another(first[key], other[key]) for key in first):
        key = next(key for key in first if is_another(first[key], other[key]))
        yield f"images, regions or candidates under the same keys (first: {key})"


def refusal(task: str, name: str, other: str, problem: str) -> str:
    """Return the line on two runs that are not tested alike."""
    pair = f"{name} and {other}" if name != other else f"two trainings of {name}"
    return (
        f"{task}: {pair} were tested on different data: {problem}, expected the same; test them on the same data with"
        " the same limit (limit, test_rows), or compare them on what they share (--queries shared) or unpaired"
        " (--queries any)"
    )
