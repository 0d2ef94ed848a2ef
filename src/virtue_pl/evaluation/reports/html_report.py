"""Report as one self-contained page: tables, plots as SVG, and failures with their images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from virtue_pl.evaluation.probes.measurements import Measurements
from virtue_pl.evaluation.reports.comparison_tables import tables as comparison_tables
from virtue_pl.evaluation.reports.failures import Failure, Failures, RenderedInput
from virtue_pl.evaluation.reports.html_plots import Bar, bars, curves
from virtue_pl.evaluation.reports.probe_tables import cost_table, robustness_tables
from virtue_pl.evaluation.reports.tables import TitledTable
from virtue_pl.evaluation.statistics.averages import published_results
from virtue_pl.evaluation.statistics.compare import RANKING, Comparison
from virtue_pl.evaluation.statistics.intervals import LEVEL
from virtue_pl.evaluation.statistics.metric_summaries import hit_estimates, summarise_metrics
from virtue_pl.evaluation.statistics.summary import Chance
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import RankedSet

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; } .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap;
  overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; } thead th { background: #f5f5f5; }
.failure { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 1rem; margin: 1rem 0; padding: 0.8rem;
  border: 1px solid #ddd; border-radius: 6px; }
.failure h4 { grid-column: 1 / -1; margin: 0; } .failure p { margin: 0.3rem 0; overflow-wrap: anywhere; }
h3 small { font-weight: normal; }
.wrong { color: #b00020; } .right { color: #00703c; } img { max-width: 100%; display: block; } small { color: #666; }
nav a { margin-right: 1rem; } .curves { display: flex; flex-wrap: wrap; } p span { margin-right: 1rem; }
summary { cursor: pointer; } svg.bars { width: 100%; min-width: 600px; max-width: 900px; margin: 0.6rem 0; }
@media (max-width: 700px) { body { margin: 1rem auto; } .failure { grid-template-columns: 1fr; } }
@media print { body { font-size: 11px; margin: 0; max-width: none; } nav { display: none; } .wide { overflow: visible; }
  svg.bars { min-width: 0; } table { font-size: 9px; } th, td { padding: 0.1rem 0.25rem; white-space: normal; }
  .failure, svg, tr { break-inside: avoid; } h2, h3, h4 { break-after: avoid; } }
"""
MARKED = ("VLM2Vec-2B", "VIRTUE-2B", "VIRTUE-2B + SCaR-train", "VLM2Vec-V1 Qwen2VL-2B")
"""Published models that are lines in the plots, where they have a score."""
MAX_CHARACTERS = 400
"""Length at which the text of a failure is cut off."""


def html_report(
    settings: Mapping[str, Any],
    tables: Sequence[TitledTable],
    modes: Sequence[TitledTable],
    ranks: RankRows,
    sets: Sequence[RankedSet],
    notes: Sequence[str],
    failures: Failures,
    measured: Measurements,
) -> str:
    """Return the whole page, which refers to no other file and no address."""
    parts = [
        f"<h1>Evaluation of {escape(str(settings['model']))}</h1>",
        (
            '<nav><a href="#tables">tables</a><a href="#plots">plots</a><a href="#modes">by mode and ranking</a>'
            '<a href="#cost">cost</a><a href="#robustness">robustness</a><a href="#failures">failures</a></nav>'
        ),
        note_list(notes),
        '<h2 id="tables">Tables</h2>',
        *map(html_table, tables),
        '<h2 id="plots">Plots</h2>',
        *(set_bars(benchmark, ranks, sets) for benchmark in dict.fromkeys(ranked.about.benchmark for ranked in sets)),
        '<h2 id="modes">By mode and ranking</h2>',
        *map(html_table, modes),
        *measurement_sections(measured),
        '<h2 id="failures">Failures</h2>',
        *failure_section(failures),
    ]
    return page("Evaluation", parts)


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


def set_bars(benchmark: str, ranks: RankRows, sets: Sequence[RankedSet]) -> str:
    """Return bars of every set's hit@1, crossed by their chance and by lines of published models."""
    about = [ranked.about for ranked in sets if ranked.about.benchmark == benchmark]
    summaries, reported = summarise_metrics(ranks, about), published_results().get(benchmark, {})
    rows = [
        Bar(
            name,
            estimate,
            summaries[name].chance["hit@1"],
            {model: reported[model][name] for model in MARKED if name in reported.get(model, {})},
        )
        for name, estimate in hit_estimates(ranks, about).items()
    ]
    return bars(f"{benchmark}, hit@1 in %, {LEVEL:.0%} intervals over queries", rows)


def comparison_page(comparison: Comparison, chance_levels: Chance) -> str:
    """Return a comparison as a page: bars of each task, tables, and notes."""
    parts = ["<h1>Comparison of runs</h1>", note_list(comparison.notes), '<h2 id="plots">Plots</h2>']
    for task, rows in sorted(comparison.shares.items()):
        level = chance_levels.get(task, {}).get(RANKING)
        found = [Bar(name, row[RANKING], level) for name, row in rows.items() if RANKING in row]
        parts += [bars(f"{task}, {RANKING} in %, {LEVEL:.0%} intervals", found)] if found else []
    parts += ['<h2 id="tables">Tables</h2>', *map(html_table, comparison_tables(comparison, chance_levels))]
    return page("Comparison", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page, which refers to no other file and no address."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join([*parts, "</body></html>\n"])


def note_list(notes: Sequence[str]) -> str:
    """Return notes as a list; "" without any."""
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


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
        '<div class="wide"><table><thead><tr><th>set</th><th>kind of distractor chosen</th><th>how often</th></tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
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
