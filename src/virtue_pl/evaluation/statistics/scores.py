"""Scores of a variant's trainings, and how each image moves them: what intervals are made of.

An array may have leading dimensions, `*studies`, which all functions carry through: a simulation is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from virtue_pl.types import VirtueError

Answers = Bool[np.ndarray, "*studies trainings queries"] | Float[np.ndarray, "*studies trainings queries"]
"""Scores of each training of a run for each query: right or wrong, or a metric's value."""
Images = Int[np.ndarray, " queries"]
"""The number of each query's image, from 0. Queries of one image have one number, in whichever task they stand."""


class Scores(NamedTuple):
    """Mean score of every training of a variant, and the part of each image in it.

    means: of each training, the unweighted mean over tasks of the mean over a task's queries.
    deviations: of each training and image, the sum over the image's queries of their distance to the mean of their
        task, by the weight of one query in `means`. The sum over images of the product of two trainings' deviations
        is the covariance of their means, if images were drawn anew: the sandwich estimator of a mean with clusters,
        with the factor clusters / (clusters - 1) of each task (Cameron and Miller 2015, section II).
    images_df: degrees of freedom of such a covariance. queries, images: their numbers.
    query_step, image_step: the weight of one query, and of one image, in a mean: of the task with the fewest.

    Example:
        >>> found = score([np.array([[True, False, True, True]])], [np.array([0, 0, 1, 1])])
        >>> found.means, found.deviations, found.images_df
        (array([0.75]), array([[-0.1767767,  0.1767767]]), 1)
    """

    means: Float[np.ndarray, "*studies trainings"]
    deviations: Float[np.ndarray, "*studies trainings images"]
    images_df: int
    queries: int
    images: int
    query_step: float
    image_step: float

    @property
    def trainings(self) -> int:
        """Number of trainings."""
        return self.means.shape[-1]

    def less(self, other: Scores) -> Scores:
        """Return each training's score less that of the same training in `other`, over the same images."""
        return self._replace(means=self.means - other.means, deviations=self.deviations - other.deviations)


def score(tasks: Sequence[Answers], images: Sequence[Images] | None = None, num_images: int | None = None) -> Scores:
    """Return the scores of one run over its tasks; row r of every task is the same training.

    images: of the queries of each task; by default every query has its own. num_images: the number of images that
    runs are compared over (by default those that occur). Raises VirtueError where tasks differ in their trainings.
    """
    trainings = {task.shape[-2] for task in tasks}
    if len(trainings) != 1:
        raise VirtueError(f"tasks with {sorted(trainings)} trainings, expected the same trainings in all")
    if images is None:
        ends = np.cumsum([task.shape[-1] for task in tasks])
        images = [np.arange(end - task.shape[-1], end) for task, end in zip(tasks, ends, strict=True)]
    count = 1 + max(int(found.max()) for found in images) if num_images is None else num_images
    parts = [deviations(task, found, count) for task, found in zip(tasks, images, strict=True)]
    own = [len(np.unique(found)) for found in images]
    distinct = len(np.unique(np.concatenate(images)))
    return Scores(
        np.mean([task.mean(axis=-1) for task in tasks], axis=0),
        np.sum(parts, axis=0) / len(tasks),
        max(distinct - len(tasks), min(own) - 1),
        sum(task.shape[-1] for task in tasks),
        distinct,
        1 / (len(tasks) * min(task.shape[-1] for task in tasks)),
        1 / (len(tasks) * min(own)),
    )


def deviations(answers: Answers, images: Images, num_images: int) -> Float[np.ndarray, "*studies trainings num_images"]:
    """Return `Scores.deviations` of one task; zero for all images where it has one image alone, which says nothing."""
    order = np.argsort(images, kind="stable")
    starts = np.flatnonzero(np.diff(images[order], prepend=-1))
    centred = answers - answers.mean(axis=-1, keepdims=True)
    sums = np.add.reduceat(centred[..., order], starts, axis=-1) / answers.shape[-1]
    found = np.zeros((*answers.shape[:-1], num_images))
    found[..., images[order][starts]] = sums * np.sqrt(len(starts) / max(1, len(starts) - 1))
    return found
