"""Summaries of ranks: how often the right candidate came first, by task, prompt mode and ranking."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from virtue_pl.evaluation.statistics.intervals import error_of_count, standard_error
from virtue_pl.evaluation.statistics.scores import score
from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.types import VirtueError

Results = dict[str, dict[str, dict[str, Any]]]
"""task -> mode -> {ranking: share of right answers, ..., "n": samples, "standard_error": {ranking: ...}}

Where queries share images, `images` counts these, and `clustered_standard_error` takes the queries of one together;
`standard_error` takes all queries as independent. An error is None where nothing tells it, as of a single query.
"""

Chance = dict[str, dict[str, float]]
"""task -> ranking -> expected share of right answers of a random ranking"""

SET_BLIND = "set_blind"
"""Name of the mode that is reported beside every other."""
NO_MODELS = ("blind", SET_BLIND, "random")
"""Modes that look at no image: baselines, which no table marks as the best."""

PACKAGES = ("virtue-pl", "torch", "lightning", "transformers", "timm", "torchmetrics", "segment-anything", "webdataset")


def summarise(rows: RankRows) -> Results:
    """Return the share of samples whose right candidate came first, with its standard error over queries.

    Each task, mode and ranking has its own. `RankRow.image` says which queries share an image.
    """
    results: Results = {}
    for (task, mode, ranking), group in rows.groups().items():
        row = results.setdefault(task, {}).setdefault(mode, {"n": 0, "standard_error": {}})
        share = hit_rate(group)
        row[ranking] = share
        row["n"] = max(row["n"], len(group))
        row["standard_error"][ranking] = error_of_count(sum(each.rank == 0 for each in group), len(group))
        images = image_numbers(group)
        if images.max() + 1 < len(group):
            row["images"] = int(images.max()) + 1
            hits = np.array([each.rank == 0 for each in group])
            row.setdefault("clustered_standard_error", {})[ranking] = clustered_error(hits, images)
    return results


def image_numbers(rows: Sequence[RankRow]) -> Int[np.ndarray, " rows"]:
    """Return the number of each query's image, from 0; a query without one, or without a record of it, has its own."""
    numbers: dict[tuple[str, ...], int] = {}
    names = [("image", row.image) if row.image else ("query", row.task, row.key) for row in rows]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def clustered_error(values: Shaped[np.ndarray, " queries"], images: Int[np.ndarray, " queries"]) -> float | None:
    """Return the standard error of the mean over queries that are drawn by image; None where they have one alone."""
    error = standard_error(score([values[None]], [images]))
    return None if error is None else float(error)


def standard_errors(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a row's standard errors by ranking: clustered by image where queries share images."""
    return {**row["standard_error"], **row.get("clustered_standard_error", {})}


def hit_rate(rows: Sequence[RankRow], k: int = 1) -> float:
    """Return the share of rows ranked among the first `k`."""
    return sum(row.rank < k for row in rows) / len(rows)


def chance(rows: RankRows) -> Chance:
    """Return chance levels: the mean of 1 / number of candidates, for each task and ranking."""
    lengths: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        lengths.setdefault((row.task, row.ranking), {})[row.key] = row.candidates
    chance_levels: Chance = {}
    for (task, ranking), found in lengths.items():
        chance_levels.setdefault(task, {})[ranking] = sum(1 / length for length in found.values()) / len(found)
    return chance_levels


def select(results: Results, names: Mapping[str, str]) -> Results:
    """Return the named modes alone, each under its new name.

    `names={"box": "no_segmentation"}` makes one row of a run ready to be merged into another's table.
    Raises VirtueError for a mode that no task has.
    """
    for mode in names:
        if not any(mode in modes for modes in results.values()):
            modes_found = sorted({name for modes in results.values() for name in modes})
            raise VirtueError(
                f"results have no mode {mode!r}, expected one of {', '.join(modes_found) or 'none: they are empty'}"
            )
    return {task: {new: modes[old] for old, new in names.items() if old in modes} for task, modes in results.items()}


def merge(*runs: Results) -> Results:
    """Merge the results of several runs. Raises VirtueError where two of them have a row of the same name."""
    merged: Results = {}
    for results in runs:
        for task, modes in results.items():
            rows = merged.setdefault(task, {})
            for mode in modes:
                if mode in rows:
                    raise VirtueError(
                        f"two runs have the row {mode!r} of {task!r}: give one of them another name (`select`) before"
                        " merging"
                    )
            rows.update(modes)
    return merged


def context(
    config: Mapping[str, Any] | None = None, seed: int | None = None, data_fingerprint: str | None = None
) -> dict[str, Any]:
    """Return the circumstances of a result beside the model: settings, seed, data, versions, machine, command."""
    return {
        "config": config,
        "seed": seed,
        "data_fingerprint": data_fingerprint,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
