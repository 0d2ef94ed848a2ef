"""The quickstart's `report.html`: what a prompt is worth, tables, a plot, and drawn queries, in one file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from virtue_pl.evaluation.reports.html_report import html_table
from virtue_pl.evaluation.reports.tables import ROWS, sort_names, task_tables
from virtue_pl.evaluation.statistics.summary import Chance, Results, standard_errors

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 960px; padding: 0 1rem; color: #1f2937; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d1d5db; padding-bottom: 0.2rem; }
.worth { font-size: 1.15rem; background: #f1f5f9; border-left: 4px solid #0072b2; padding: 0.7rem 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: #f8fafc; } small { color: #6b7280; }
h3 small { font-weight: normal; display: block; } img, svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figure img { border: 1px solid #d1d5db; border-radius: 6px; }
pre { background: #f8fafc; border: 1px solid #e5e7eb; border-radius: 6px; padding: 0.8rem; overflow-x: auto; }
"""
LEFT, WIDTH, ROW, TOP = 170, 620, 34, 30
"""Sizes of the plot, in pixels: where its bars begin, how long 100 % is, a row's height, the height of the legend."""
COLOURS = ("#0072b2", "#e69f00", "#009e73")
CHANCE = "#b91c1c"
RANKING = "hit@1"
MAX_IMAGES = 8


class DrawnQuery(NamedTuple):
    """A query as a test has drawn it: its mode, and a PNG of image, prompt, predicted mask and ranked captions.

    Example:
        >>> DrawnQuery("box", b"png").mode
        'box'
    """

    mode: str
    png: bytes


def drawn_queries(folder: Path, limit: int = MAX_IMAGES) -> list[DrawnQuery]:
    """Return the queries that the last test in a run's folder has drawn for TensorBoard, the first ones.

    See `callbacks.PromptImages`; a run without TensorBoard has none.
    """
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={IMAGES: 1})
    events.Reload()
    tags = sorted(tag for tag in events.Tags()[IMAGES] if tag.startswith("test/retrieved/"))
    found = {int(tag.rpartition("/")[2].partition("_")[0]): tag for tag in tags}
    return [
        DrawnQuery(tag.rpartition("/")[2].partition("_")[2], events.Images(tag)[-1].encoded_image_string)
        for _, tag in sorted(found.items())[:limit]
    ]


def quickstart_page(
    report: Mapping[str, Any], worth: str, examples: Sequence[DrawnQuery], commands: Sequence[tuple[str, str]]
) -> str:
    """Return the page, which refers to no other file and no address.

    report: what `report.json` holds. worth: what a prompt is worth, in a sentence. commands: what to do next, each with
    its reason.
    """
    results, chance_levels = report["scar_mini"], report["chance"]
    about = report["context"]
    segmenter = ", ".join(f"{escape(name)} {value:.3f}" for name, value in sorted(report["segmenter"].items()))
    minutes = sum(report["seconds"].values()) / 60
    parts = [
        "<h1>What a visual prompt is worth</h1>",
        f'<p class="worth">{escape(worth)}</p>' if worth else "",
        "<p>The scenes are composed and their captions are of templates: these numbers compare with each other, and"
        " with no published one. The model is a toy on photographs of your own.</p>",
        "<h2>Captions that come first and are right</h2>",
        bar_plot(results, chance_levels),
        *(html_table(table) for table in reversed(task_tables(results, chance_levels))),  # test_seen first
        f"<p>The segmenter's mean IoU: {segmenter}.</p>",
        "<h2>Queries</h2>",
        *example_section(examples),
        "<h2>Next</h2>",
        *(f"<p>{escape(reason)}</p><pre>{escape(command)}</pre>" for reason, command in commands),
        f"<p><small>{escape(report['source'])}, seed {about['seed']}, {escape(str(about['date']))};"
        f" {minutes:.0f} minutes in all stages.</small></p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width"><title>Quickstart</title><style>{STYLE}</style></head><body>\n'
        + "\n".join([*parts, "</body></html>\n"])
    )


def example_section(examples: Sequence[DrawnQuery]) -> Iterator[str]:
    """Yield the drawn queries by mode."""
    if not examples:
        yield "<p>None were drawn: the test logged to no TensorBoard.</p>"
        return
    yield (
        "<p>The image with its prompt in red and the predicted mask in blue; beside it the captions, best first, the"
        " right one in green. They are the first queries of a test, not chosen ones.</p>"
    )
    order = sorted(
        examples, key=lambda drawn: (ROWS.index(drawn.mode) if drawn.mode in ROWS else len(ROWS), drawn.mode)
    )
    for mode, drawn in groupby(order, key=lambda one: one.mode):
        yield f"<h3>{escape(mode)}</h3>"
        for one in drawn:
            encoded = base64.b64encode(one.png).decode()
            yield f'<figure><img src="data:image/png;base64,{encoded}" alt="a query and its ranked captions"></figure>'


def bar_plot(results: Results, chance_levels: Chance) -> str:
    """Return a plot of every row's hit@1 in every set, with its standard error and the level of chance."""
    sets = sorted(results, reverse=True)
    rows = sort_names({row for modes in results.values() for row in modes}, ROWS)
    height = TOP + ROW * len(rows) + 26
    inside = [*legend(sets), *(tick(share, height) for share in (0, 25, 50, 75, 100))]
    for number, row in enumerate(rows):
        top = TOP + ROW * number
        inside.append(f'<text x="{LEFT - 8}" y="{top + 20}" text-anchor="end">{escape(row)}</text>')
        for index, name in enumerate(sets):
            if row in results[name]:
                inside += bar(results[name][row], top + 3 + index * (ROW - 8) / len(sets), (ROW - 8) / len(sets), index)
    levels = {round(level[RANKING], 4) for level in chance_levels.values() if RANKING in level}
    inside += [
        f'<line x1="{across(level)}" x2="{across(level)}" y1="{TOP}" y2="{height - 22}" stroke="{CHANCE}"'
        ' stroke-dasharray="4 3"/>'
        for level in levels
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 70} {height}" font-size="13"'
        f' font-family="system-ui, sans-serif" role="img" aria-label="hit@1 of every row">{"".join(inside)}</svg>'
    )


def legend(sets: Sequence[str]) -> Iterator[str]:
    """Yield the plot's key: a colour for each set, and the line of chance."""
    for index, name in enumerate(sets):
        x = LEFT + index * 160
        yield f'<rect x="{x}" y="6" width="12" height="12" fill="{COLOURS[index % len(COLOURS)]}"/>'
        yield f'<text x="{x + 18}" y="17">{escape(name)}</text>'
    x = LEFT + len(sets) * 160
    yield f'<line x1="{x}" x2="{x + 14}" y1="12" y2="12" stroke="{CHANCE}" stroke-dasharray="4 3"/>'
    yield f'<text x="{x + 20}" y="17">chance; % ± standard error</text>'


def bar(row: Mapping[str, Any], top: float, height: float, index: int) -> Iterator[str]:
    """Yield one row's bar in one set, with a line from one standard error below its end to one above."""
    share, error = row[RANKING], standard_errors(row)[RANKING]
    middle = top + height / 2
    yield (
        f'<rect x="{LEFT}" y="{top:.1f}" width="{share * WIDTH:.1f}" height="{height - 1:.1f}"'
        f' fill="{COLOURS[index % len(COLOURS)]}"/>'
    )
    end = share
    if error is not None:
        end = share + error
        yield (
            f'<line x1="{across(max(0.0, share - error))}" x2="{across(min(1.0, end))}" y1="{middle:.1f}"'
            f' y2="{middle:.1f}" stroke="#111827" stroke-width="1.5"/>'
        )
    x = LEFT + min(1.0, end) * WIDTH + 5
    yield f'<text x="{x:.1f}" y="{middle + 4:.1f}" font-size="11">{100 * share:.1f}</text>'


def tick(share: int, height: int) -> str:
    """Return the vertical line of a percentage, with its label."""
    x = across(share / 100)
    return (
        f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{height - 22}" stroke="#e5e7eb"/>'
        f'<text x="{x}" y="{height - 8}" text-anchor="middle" font-size="11" fill="#6b7280">{share}</text>'
    )


def across(share: float) -> str:
    """Return the x of a share."""
    return f"{LEFT + share * WIDTH:.1f}"
