"""Report as one self-contained page: tables, plots as SVG, and failures with their images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from virtue_pl.evaluation.probes.measurements import Measurements
from virtue_pl.evaluation.reports.failures import Failure, Failures, RenderedInput
from virtue_pl.evaluation.reports.html_curves import curves
from virtue_pl.evaluation.reports.probe_tables import cost_table, robustness_tables
from virtue_pl.evaluation.reports.tables import TitledTable, task_tables
from virtue_pl.evaluation.statistics.averages import published_results
from virtue_pl.evaluation.statistics.summary import Chance, Results
from virtue_pl.types import RankedSet

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; } .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: #f5f5f5; }
.failure { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 1rem; margin: 1rem 0; padding: 0.8rem;
  border: 1px solid #ddd; border-radius: 6px; }
.failure h4 { grid-column: 1 / -1; margin: 0; } .failure p { margin: 0.3rem 0; overflow-wrap: anywhere; }
.wrong { color: #b00020; } .right { color: #00703c; } img { max-width: 100%; display: block; } small { color: #666; }
nav a { margin-right: 1rem; } .curves { display: flex; flex-wrap: wrap; } p span { margin-right: 1rem; }
summary { cursor: pointer; }
"""
BAR, GAP, LEFT, WIDTH = 16, 6, 190, 560
"""Sizes of the plots, in pixels."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
MARKED = ("VLM2Vec-2B", "VIRTUE-2B", "VIRTUE-2B + SCaR-train", "VLM2Vec-V1 Qwen2VL-2B")
"""Published models that are lines in the plots, where they have a score."""
MAX_CHARACTERS = 400
"""Length at which the text of a failure is cut off."""


def html_report(
    settings: Mapping[str, Any],
    tables: Sequence[TitledTable],
    results: Results,
    chance_levels: Chance,
    found: Mapping[str, Mapping[str, float]],
    sets: Sequence[RankedSet],
    notes: Sequence[str],
    failures: Failures,
    measured: Measurements,
) -> str:
    """Return the whole page, which refers to no other file and no address."""
    kinds = task_tables(results, chance_levels)
    parts = [
        f"<h1>Evaluation of {escape(str(settings['model']))}</h1>",
        (
            '<nav><a href="#tables">tables</a><a href="#plots">plots</a><a href="#modes">by mode and ranking</a>'
            '<a href="#cost">cost</a><a href="#robustness">robustness</a><a href="#failures">failures</a></nav>'
        ),
        "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>",
        '<h2 id="tables">Tables</h2>',
        *map(html_table, tables),
        '<h2 id="plots">Plots</h2>',
        *(bars(benchmark, found, sets) for benchmark in dict.fromkeys(ranked.about.benchmark for ranked in sets)),
        '<h2 id="modes">By mode and ranking</h2>',
        *map(html_table, kinds),
        *measurement_sections(measured),
        '<h2 id="failures">Failures</h2>',
        *failure_section(failures),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta'
        f' charset="utf-8"><title>Evaluation</title><style>{STYLE}</style></head><body>\n'
        + "\n".join([*parts, "</body></html>\n"])
    )


def measurement_sections(measured: Measurements) -> Iterator[str]:
    """Yield the sections on cost and robustness, which say so where they were not measured."""
    yield '<h2 id="cost">Cost</h2>'
    yield (
        html_table(cost_table(measured.cost)) if measured.cost else "<p>Not measured: it is with <code>cost</code>.</p>"
    )
    yield '<h2 id="robustness">Robustness of prompts</h2>'
    if not measured.robustness:
        yield "<p>Not measured: it is with <code>robustness</code>, where a set has regions.</p>"
        return
    yield from curves(measured.robustness)
    for table in robustness_tables(measured.robustness):
        yield f"<details><summary>{escape(table.title)}</summary>{html_table(table)}</details>"


def html_table(table: TitledTable) -> str:
    """Return a table under its title."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.cells.columns)
    marked = table.cells.best
    body = "".join(
        "<tr>" + "".join(cell(text, (line, column) in marked) for column, text in enumerate(row)) + "</tr>"
        for line, row in enumerate(table.cells.rows)
    )
    title = f"<h3>{escape(table.title)} <small>{escape(table.caption)}</small></h3>"
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(text: str, best: bool) -> str:
    """Return a table's cell."""
    return f"<td>{'<b>' + escape(text) + '</b>' if best else escape(text)}</td>"


def bars(benchmark: str, found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet]) -> str:
    """Return bars of every set's hit@1, crossed by lines of published models'."""
    names = [ranked.about.name for ranked in sets if ranked.about.benchmark == benchmark]
    reported = published_results().get(benchmark, {})
    models = [model for model in MARKED if any(name in reported.get(model, {}) for name in names)]
    height = (BAR + GAP) * len(names) + 46
    drawn = [
        line
        for index, name in enumerate(names)
        for line in bar(index, name, found[name]["hit@1"], [reported[model].get(name) for model in models])
    ]
    axis = [tick(share, height) for share in (0, 25, 50, 75, 100)]
    key = "".join(
        f'<tspan fill="{COLOURS[1 + number % 3]}"> | {escape(model)}</tspan>' for number, model in enumerate(models)
    )
    title = f'<text x="{LEFT}" y="13" font-size="13" fill="{COLOURS[0]}">{escape(benchmark)}, hit@1 in %{key}</text>'
    inside = "".join([title, *axis, *drawn])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 60}" height="{height}"'
        f' font-family="sans-serif">{inside}</svg>'
    )


def bar(index: int, name: str, share: float, others: Iterable[float | None]) -> Iterable[str]:
    """Yield one set's bar, the one with that index from the top. others: shares of published models."""
    top = 22 + index * (BAR + GAP)
    yield f'<text x="{LEFT - 6}" y="{top + 12}" text-anchor="end" font-size="12">{escape(name)}</text>'
    yield f'<rect x="{LEFT}" y="{top}" width="{share * WIDTH:.1f}" height="{BAR}" fill="{COLOURS[0]}"/>'
    for number, other in enumerate(others):
        if other is not None:
            x = LEFT + other * WIDTH
            yield (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{top + BAR + 2}"'
                f' stroke="{COLOURS[1 + number % 3]}" stroke-width="3"/>'
            )
    yield f'<text x="{LEFT + share * WIDTH + 5:.1f}" y="{top + 12}" font-size="12">{100 * share:.1f}</text>'


def tick(share: int, height: int) -> str:
    """Return the vertical line of a percentage, with its label."""
    x = LEFT + share / 100 * WIDTH
    line = f'<line x1="{x}" x2="{x}" y1="18" y2="{height - 22}" stroke="#dddddd"/>'
    return f'{line}<text x="{x}" y="{height - 8}" text-anchor="middle" font-size="11" fill="#666">{share}</text>'


def failure_section(failures: Failures) -> Iterable[str]:
    """Yield a table of how often each kind of distractor was chosen, and examples of each."""
    if not failures.counts:
        yield "<p>None: every right candidate came first.</p>"
        return
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(kind)}</td><td>{count}</td></tr>"
        for (name, kind), count in sorted(failures.counts.items())
    )
    yield (
        "<table><thead><tr><th>set</th><th>kind of distractor chosen</th><th>how"
        f" often</th></tr></thead><tbody>{lines}</tbody></table>"
    )
    last = None
    for failure in failures.examples:
        if failure.kind != last:
            yield f"<h3>Kind: {escape(failure.kind)}</h3>"
            last = failure.kind
        yield failure_card(failure)


def failure_card(failure: Failure) -> str:
    """Return a failure's query, chosen and right candidate side by side."""
    columns = [
        column("query", "", failure.query),
        column(f"chosen, score {failure.scores[0]:.4f}", "wrong", failure.chosen),
        column(f"right, score {failure.scores[1]:.4f}, rank {failure.rank + 1}", "right", failure.right),
    ]
    return f'<div class="failure"><h4>{escape(failure.name)}</h4>{"".join(columns)}</div>'


def column(title: str, style: str, item: RenderedInput) -> str:
    """Return one input with its image."""
    text = item.text if len(item.text) <= MAX_CHARACTERS else item.text[:MAX_CHARACTERS] + " …"
    image = f'<img src="{item.image}" alt="">' if item.image else ""
    return f'<div><small>{escape(title)}</small>{image}<p class="{style}">{escape(text)}</p></div>'
