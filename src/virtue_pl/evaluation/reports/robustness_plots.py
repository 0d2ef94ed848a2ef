"""Plots of robustness; they need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virtue_pl.evaluation.probes.robustness import Robustness
from virtue_pl.evaluation.reports import plots


def plot_robustness(found: Robustness, folder: Path) -> list[Path]:
    """Draw FOLDER/robustness_KIND.png for every kind: hit@1 over the level, one line for each task.

    Error bars are standard errors.
    """
    tasks = found.as_json()
    kinds = dict.fromkeys(kind for by_kind in tasks.values() for kind in by_kind)
    return [
        plot_kind(
            {task: by_kind[kind] for task, by_kind in tasks.items() if kind in by_kind},
            folder / f"robustness_{kind}.png",
        )
        for kind in kinds
    ]


def plot_kind(tasks: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Draw one kind's curves. tasks: task -> the kind's part of `Robustness.as_json`."""
    figure, axes = plots.new_figure(6, 4)
    for number, (task, about) in enumerate(tasks.items()):
        levels = about["levels"]
        shares = [100 * row["hit@1"] for row in levels]
        errors = [100 * plots.reach(row["standard_error"]) for row in levels]
        xs = [row["level"] for row in levels]
        axes.errorbar(
            xs,
            shares,
            errors,
            color=plots.colour(number),
            marker=plots.marker(number),
            capsize=3,
            label=plots.label(task),
        )
    plots.draw_chance(axes.axhline, [about["levels"][0]["chance"] for about in tasks.values()])
    first = next(iter(tasks.values()))
    axes.axvline(first["neutral"], color=plots.INK, linestyle=":", linewidth=1.2, label="as annotated")
    axes.set(xlabel=first["unit"], ylabel="hit@1, % of queries", ylim=(0, None))
    axes.grid(color=plots.GRID, linewidth=0.7)
    plots.legend_above(figure, axes)
    return plots.save(figure, path)
