"""Summaries of ranks: how often the right candidate came first, by task, prompt mode and ranking."""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.types import VirtueError

Results = dict[str, dict[str, dict[str, Any]]]
"""task -> mode -> {ranking: share of right answers, ..., "n": samples, "standard_error": {ranking: ...}}"""

Chance = dict[str, dict[str, float]]
"""task -> ranking -> expected share of right answers of a random ranking"""

PACKAGES = ("virtue-pl", "torch", "lightning", "transformers", "timm", "torchmetrics", "segment-anything", "webdataset")


def summarise(rows: RankRows) -> Results:
    """Return the share of samples whose right candidate came first, with its standard error.

    Each task, mode and ranking has its own.
    """
    results: Results = {}
    for (task, mode, ranking), group in rows.groups().items():
        row = results.setdefault(task, {}).setdefault(mode, {"n": 0, "standard_error": {}})
        share = hit_rate(group)
        row[ranking] = share
        row["n"] = max(row["n"], len(group))
        row["standard_error"][ranking] = math.sqrt(share * (1 - share) / len(group))
    return results


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
