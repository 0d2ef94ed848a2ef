"""Plots of comparisons: bars, a curve over a number, learning curves.

They need matplotlib, which is in the extra `ablations`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virtue_pl.evaluation.reports.curves import Curve
from virtue_pl.evaluation.reports.report_files import write_bytes
from virtue_pl.evaluation.statistics.compare import Comparison
from virtue_pl.evaluation.statistics.intervals import LEVEL, Estimate
from virtue_pl.evaluation.statistics.summary import Chance
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
"""Okabe and Ito's colours, which are safe for colour-blind readers; markers and positions say the same."""
MARKERS = "osD^vPXh"
LINES = f"lines: {LEVEL:.0%} intervals over trainings and queries; of one training, over queries"
INK, GRID = "#333333", "#DDDDDD"


def plot_families(comparison: Comparison, chance_levels: Chance, folder: Path) -> list[Path]:
    """Draw `plot_bars` of each family of tasks, as "scar_mini" of "scar_mini/test_seen", in FOLDER/bars_FAMILY.png."""
    families: dict[str, list[str]] = {}
    for task in comparison.shares:
        families.setdefault(task.rpartition("/")[0], []).append(task)
    return [
        plot_bars(comparison, tasks, chance_levels, folder / f"bars_{family.replace('/', '_')}.png")
        for family, tasks in families.items()
    ]


def plot_bars(
    comparison: Comparison, tasks: Sequence[str], chance_levels: Chance, path: Path, ranking: str = "hit@1"
) -> Path:
    """Draw a bar with its interval for every run and task; runs from top to bottom in the comparison's order."""
    rows = list(dict.fromkeys(name for task in tasks for name in comparison.shares[task]))
    figure, axes = new_figure(8, 1.3 + (0.17 + 0.24 * len(tasks)) * len(rows))
    thickness = 0.82 / len(tasks)
    for number, task in enumerate(easiest_first(comparison, tasks, ranking)):
        shares = comparison.shares[task]
        shift = (number - (len(tasks) - 1) / 2) * thickness
        found = [
            (row + shift, shares[name][ranking]) for row, name in enumerate(rows) if ranking in shares.get(name, {})
        ]
        draw_bars(axes, found, 0.92 * thickness, colour(number), label(task))
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.set(ylim=(len(rows) - 0.45, -0.55), xlabel=f"{ranking}, % of queries ({LINES})")
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    draw_chance(
        axes.axvline, [chance_levels[task][ranking] for task in tasks if ranking in chance_levels.get(task, {})]
    )
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    legend_above(figure, axes)
    return save(figure, path)


def draw_bars(axes: Axes, found: Sequence[tuple[float, Estimate]], thickness: float, fill: str, name: str) -> None:
    """Draw bars, each with its interval, and its value beside it. found: (position, estimate)."""
    positions = [position for position, _ in found]
    axes.barh(
        positions,
        percent(found),
        thickness,
        color=fill,
        label=name,
        xerr=errors(found),
        error_kw={"ecolor": INK, "capsize": 2},
    )
    for position, estimate in found:
        axes.text(100 * estimate.high + 0.8, position, f"{100 * estimate.mean:.1f}", va="center", fontsize=8, color=INK)


def plot_against_number(
    comparison: Comparison,
    numbers: Mapping[str, float],
    tasks: Sequence[str],
    chance_levels: Chance,
    path: Path,
    meaning: str,
    ranking: str = "hit@1",
) -> Path:
    """Draw the shares of right answers over each run's number, one line for each task."""
    figure, axes = new_figure(6, 4)
    for order, task in enumerate(easiest_first(comparison, tasks, ranking)):
        found = sorted(
            (numbers[name], row[ranking]) for name, row in comparison.shares[task].items() if name in numbers
        )
        xs = [number for number, _ in found]
        axes.errorbar(
            xs, percent(found), errors(found), color=colour(order), marker=marker(order), capsize=3, label=label(task)
        )
    axes.set_xticks(sorted(numbers.values()))
    axes.set(xlabel=meaning, ylabel=f"{ranking}, % of queries", ylim=(0, None))
    draw_chance(
        axes.axhline, [chance_levels[task][ranking] for task in tasks if ranking in chance_levels.get(task, {})]
    )
    axes.grid(color=GRID, linewidth=0.7)
    legend_above(figure, axes)
    return save(figure, path)


def plot_curves(curves: Mapping[str, Sequence[Curve]], path: Path, meaning: str) -> Path:
    """Draw one line for each run: the mean of its trainings, in a band from the lowest to the highest.

    Steps that not all trainings have logged are left out.
    """
    figure, axes = new_figure(7.5, 4.5)
    for order, (name, trainings) in enumerate(curves.items()):
        logged = sorted(set.intersection(*map(set, trainings)))
        values = 100 * np.array([[training[step] for step in logged] for training in trainings])
        steps = [step + 1 for step in logged]
        title = name.replace("_", " ") + (f", {len(trainings)} seeds" if len(trainings) > 1 else "")
        axes.plot(steps, values.mean(axis=0), color=colour(order), marker=marker(order), markersize=4, label=title)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour(order), alpha=0.18, linewidth=0)
    axes.set(xlabel="training steps", ylabel=meaning, xlim=(0, None), ylim=(0, None))
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save(figure, path)


def colour(number: int) -> str:
    """Return the colour of the line or bar with a number."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Return the marker of the line with a number."""
    return MARKERS[number % len(MARKERS)]


def easiest_first(comparison: Comparison, tasks: Sequence[str], ranking: str) -> list[str]:
    """Return the tasks in the order of their best run's share, the highest first."""
    return sorted(
        tasks, key=lambda task: -max(row[ranking].mean for row in comparison.shares[task].values() if ranking in row)
    )


def percent(found: Sequence[tuple[float, Estimate]]) -> list[float]:
    """Return the means in percent."""
    return [100 * estimate.mean for _, estimate in found]


def errors(found: Sequence[tuple[float, Estimate]]) -> list[list[float]]:
    """Return the intervals' extents below and above the means, in percentage points."""
    below = [100 * max(0, estimate.mean - estimate.low) for _, estimate in found]
    above = [100 * max(0, estimate.high - estimate.mean) for _, estimate in found]
    return [below, above]


def reach(error: float | None) -> float:
    """Return how far an error bar reaches to each side: over all where a single query tells nothing."""
    return 1.0 if error is None else error


def label(task: str) -> str:
    """Return a task's label: "scar_mini/test_held_out" -> "held out"."""
    return task.rpartition("/")[2].removeprefix("test_").replace("_", " ")


def draw_chance(line: Any, shares: Sequence[float]) -> None:
    """Draw a line at each chance level. line: `Axes.axvline` or `Axes.axhline`."""
    for share in sorted(set(np.round(shares, 6))):
        line(100 * share, color=INK, linestyle=":", linewidth=1.2, label=f"chance, {100 * share:.3g}%")


def legend_above(figure: Figure, axes: Axes) -> None:
    """Draw the legend above the plot."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of the given size in inches. Raises VirtueError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise VirtueError(
            "plots need matplotlib, which is not installed: pip install 'virtue-pl[ablations]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return write_bytes(path, content.getvalue())
