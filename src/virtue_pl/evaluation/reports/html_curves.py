"""Curves of robustness as SVG for a self-contained page: a plot for each kind, a line for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
"""Okabe and Ito's colours, which are safe for colour-blind readers."""
WIDTH, HEIGHT = 370, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 26, 46
"""Sizes of a plot and its margins, in pixels."""
Levels = Sequence[Mapping[str, float]]


def curves(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the HTML of the legend and of all plots. tasks: task -> kind -> levels, from `Robustness.as_json`."""
    kinds = dict.fromkeys(kind for by_kind in tasks.values() for kind in by_kind)
    key = "".join(
        f'<span style="color:{colour(number)}">&#9679; {escape(task)}</span> ' for number, task in enumerate(tasks)
    )
    yield f"<p>{key}<small>dotted: the prompt as annotated; bars: standard errors</small></p>"
    drawn = (
        plot(kind, [(number, by_kind[kind]) for number, by_kind in enumerate(tasks.values()) if kind in by_kind])
        for kind in kinds
    )
    yield f'<div class="curves">{"".join(drawn)}</div>'


def plot(kind: str, found: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """Return the plot of hit@1 over the level. found: (number of the task, its results of the kind)."""
    about = found[0][1]
    levels = [row["level"] for row in about["levels"]]
    low, high = min(levels), max(levels)
    neutral = x_of_level(about["neutral"], low, high)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<text x="{middle}" y="15" text-anchor="middle" font-size="13">{escape(kind.replace("_", " "))}</text>',
        *(line_of_share(share) for share in (0, 25, 50, 75, 100)),
        *(label_of_level(level, low, high) for level in readable_levels(levels, low, high)),
        (
            f'<line x1="{neutral:.1f}" x2="{neutral:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#333"'
            ' stroke-dasharray="2 3"/>'
        ),
        *(part for number, each in found for part in curve(each["levels"], colour(number), low, high)),
        (
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" font-size="11"'
            f' fill="#333">{escape(about["unit"])}</text>'
        ),
        (
            f'<text x="12" y="{y_of_share(50)}" text-anchor="middle" font-size="11" fill="#333" transform="rotate(-90'
            f' 12 {y_of_share(50)})">hit@1, %</text>'
        ),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="sans-serif">{"".join(parts)}</svg>'
    )


def curve(levels: Levels, stroke: str, low: float, high: float) -> Iterator[str]:
    """Yield the line through all levels, and at each a dot and a bar of one standard error up and down."""
    points = [(x_of_level(row["level"], low, high), 100 * row["hit@1"], 100 * row["standard_error"]) for row in levels]
    joined = " ".join(f"{x:.1f},{y_of_share(share):.1f}" for x, share, _ in points)
    yield f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="2"/>'
    for x, share, error in points:
        ends = f'y1="{y_of_share(max(share - error, 0)):.1f}" y2="{y_of_share(min(share + error, 100)):.1f}"'
        yield (
            f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{stroke}"/><circle cx="{x:.1f}"'
            f' cy="{y_of_share(share):.1f}" r="3" fill="{stroke}"/>'
        )


def line_of_share(share: int) -> str:
    """Return the grid line of a percentage, with its label."""
    y = y_of_share(share)
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return f'{line}<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="#666">{share}</text>'


def readable_levels(levels: Sequence[float], low: float, high: float) -> Iterator[float]:
    """Yield the levels whose labels do not overlap."""
    last = float("-inf")
    for level in sorted(set(levels)):
        x = x_of_level(level, low, high)
        if x - last >= 26:
            yield level
            last = x


def label_of_level(level: float, low: float, high: float) -> str:
    """Return the label of a level below the axis."""
    x, y = x_of_level(level, low, high), HEIGHT - BOTTOM
    return f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle" font-size="11" fill="#666">{level:g}</text>'


def x_of_level(level: float, low: float, high: float) -> float:
    """Return the position of a level, in pixels from the left."""
    return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * ((level - low) / (high - low) if high > low else 0.5)


def y_of_share(share: float) -> float:
    """Return the position of a percentage, in pixels from the top."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share / 100)


def colour(number: int) -> str:
    """Return the colour of the line with a number."""
    return COLOURS[number % len(COLOURS)]
