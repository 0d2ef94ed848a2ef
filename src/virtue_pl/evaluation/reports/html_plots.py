"""Plots as SVG for a self-contained page: bars with their intervals and chance, and curves of robustness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from virtue_pl.evaluation.reports.plots import COLOURS, reach
from virtue_pl.evaluation.reports.tables import percent_beside
from virtue_pl.evaluation.statistics.intervals import Estimate

WIDTH, HEIGHT = 370, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 26, 46
"""Sizes of a plot of curves and its margins, in pixels."""
BAR, GAP, NAMES, LENGTH, VALUES, HEAD = 16, 7, 190, 500, 60, 42
"""Sizes of a plot of bars: a bar, the space below it, and widths of the names, of 100 %, and of what stands behind."""
INK = "#333"
Levels = Sequence[Mapping[str, Any]]


class Bar(NamedTuple):
    """Bar of a plot. chance: None where it is not known. others: published shares by the model's name.

    Example:
        >>> Bar("ADE20K", Estimate(0.6, 0.55, 0.65, 400, 1), chance=0.1).chance
        0.1
    """

    name: str
    estimate: Estimate
    chance: float | None = None
    others: Mapping[str, float] = {}


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Return a plot of shares with their intervals; a dotted line crosses each bar at its chance level."""
    models = dict.fromkeys(model for row in rows for model in row.others)
    colours = {model: COLOURS[1 + number % 3] for number, model in enumerate(models)}
    chance = {"chance (dotted)": INK} if any(row.chance is not None for row in rows) else {}
    bottom = HEAD + (BAR + GAP) * len(rows)
    parts = [
        f'<text x="0" y="14" font-size="13">{escape(title)}</text>',
        legend(colours | chance),
        *(tick(share, bottom) for share in (0, 25, 50, 75, 100)),
        *(part for number, row in enumerate(rows) for part in bar(HEAD + number * (BAR + GAP), row, colours)),
    ]
    width, height = NAMES + LENGTH + VALUES, bottom + 22
    return (
        f'<div class="wide"><svg class="bars" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></div>'
    )


def legend(colours: Mapping[str, str]) -> str:
    """Return the names of the lines in their colours; "" for none."""
    names = "".join(
        f'<tspan fill="{stroke}" dx="{14 * bool(number)}">| {escape(name)}</tspan>'
        for number, (name, stroke) in enumerate(colours.items())
    )
    return f'<text x="{NAMES}" y="31" font-size="11">{names}</text>' if names else ""


def bar(top: float, row: Bar, colours: Mapping[str, str]) -> Iterator[str]:
    """Yield the parts of one bar, whose upper edge is at `top`. colours: of the published models' lines."""
    found = row.estimate
    middle, end = top + BAR / 2, NAMES + found.mean * LENGTH
    low, high = (NAMES + share * LENGTH for share in (found.low, found.high))
    yield f'<text x="{NAMES - 6}" y="{top + 12}" text-anchor="end" font-size="12">{escape(shorten(row.name))}</text>'
    yield f'<rect x="{NAMES}" y="{top}" width="{end - NAMES:.1f}" height="{BAR}" fill="{COLOURS[0]}"/>'
    for model, share in row.others.items():
        yield vertical(NAMES + share * LENGTH, top - 2, top + BAR + 2, f'stroke="{colours[model]}" stroke-width="3"')
    if row.chance is not None:
        x = NAMES + row.chance * LENGTH
        yield vertical(x, top - 3, top + BAR + 3, 'stroke="#fff" stroke-width="3"')
        yield vertical(
            x, top - 3, top + BAR + 3, f'class="chance" stroke="{INK}" stroke-width="1.6" stroke-dasharray="2 2"'
        )
    yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{INK}"/>'
    yield vertical(low, middle - 4, middle + 4, f'stroke="{INK}"')
    yield vertical(high, middle - 4, middle + 4, f'stroke="{INK}"')
    ends = [NAMES + share * LENGTH for share in row.others.values()]
    after = max([high, *(x for x in ends if high - 4 < x < high + 44)])
    yield f'<text x="{after + 6:.1f}" y="{top + 12}" font-size="12">{100 * found.mean:.1f}</text>'
    ends_of = [percent_beside(share, found.mean) for share in (found.low, found.high)]
    yield f"<title>{escape(row.name)}: {100 * found.mean:.1f} % ({ends_of[0]}…{ends_of[1]})</title>"


def vertical(x: float, top: float, bottom: float, style: str) -> str:
    """Return a vertical line."""
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" {style}/>'


def tick(share: int, bottom: float) -> str:
    """Return the line of a percentage through a plot of bars, with its label."""
    x = NAMES + share / 100 * LENGTH
    label = f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle" font-size="11" fill="#666">{share}</text>'
    return vertical(x, HEAD - 4, bottom, 'stroke="#ddd"') + label


def shorten(name: str, characters: int = 29) -> str:
    """Return a name that fits beside the bars; what is cut off is "…"."""
    return name if len(name) <= characters else name[: characters - 1] + "…"


def curves(tasks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the HTML of the legend and of all plots. tasks: task -> kind -> levels, from `Robustness.as_json`."""
    kinds = dict.fromkeys(kind for by_kind in tasks.values() for kind in by_kind)
    key = "".join(
        f'<span style="color:{colour(number)}">&#9679; {escape(task)}</span> ' for number, task in enumerate(tasks)
    )
    yield f"<p>{key}<small>dotted: the prompt as annotated; dashed: chance; bars: standard errors</small></p>"
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
        *(chance_line(each["levels"], colour(number)) for number, each in found),
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


def chance_line(levels: Levels, stroke: str) -> str:
    """Return the dashed line of a task's chance level through a plot of curves."""
    y = y_of_share(100 * levels[0]["chance"])
    ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line class="chance" {ends} stroke="{stroke}" stroke-dasharray="6 4"/>'


def curve(levels: Levels, stroke: str, low: float, high: float) -> Iterator[str]:
    """Yield the line through all levels, and at each a dot and a bar of one standard error up and down."""
    points = [
        (x_of_level(row["level"], low, high), 100 * row["hit@1"], 100 * reach(row["standard_error"])) for row in levels
    ]
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
