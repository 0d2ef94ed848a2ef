"""Tables and page of a search by region: each set's rows with intervals and chance, and differences between rows."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from virtue_pl.evaluation.reports.comparison_tables import cell, share_cell
from virtue_pl.evaluation.reports.html_plots import Bar, bars
from virtue_pl.evaluation.reports.html_report import html_table, note_list, page
from virtue_pl.evaluation.reports.tables import NOT_ABOVE, Grid, TitledTable, markdown_table
from virtue_pl.evaluation.retrieval.region_retrieval import METRICS
from virtue_pl.evaluation.statistics.intervals import LEVEL, Estimate
from virtue_pl.evaluation.statistics.retrieval_estimates import RetrievalEstimate

INTERVALS = f"{LEVEL:.0%} intervals over queries, clustered by image, of one training each"
Differences = Mapping[str, Mapping[str, Estimate]]


class RetrievalTable(NamedTuple):
    """Results of one set's queries.

    rows: row -> estimates. differences: row -> metric -> its difference to another row, named in `references`.
    documents: row -> the number of documents that are searched.

    Example:
        >>> RetrievalTable("gallery, seen", {}, {}, {}, {}).title
        'gallery, seen'
    """

    title: str
    rows: Mapping[str, RetrievalEstimate]
    differences: Differences
    references: Mapping[str, str]
    documents: Mapping[str, int]

    def tables(self) -> Iterator[TitledTable]:
        """Yield the table of the rows, and that of the differences where there are some."""
        yield TitledTable(
            self.title, result_grid(self.rows, self.documents), f"%, {INTERVALS}; {NOT_ABOVE}: not above chance"
        )
        if self.differences:
            lines = [
                [name, self.references[name], *(cell(found, metric, "+") for metric in METRICS)]
                for name, found in self.differences.items()
            ]
            caption = (
                f"points more than the other row, paired by query, {INTERVALS}, which say nothing of other trainings"
            )
            yield TitledTable(f"{self.title}, differences", Grid(["row", "less", *METRICS], lines, set()), caption)

    def plot(self) -> str:
        """Return bars of hit@10 as SVG, each with its interval and its level of chance."""
        metric = METRICS[1]
        found = [Bar(name, row.metrics[metric], row.chance[metric]) for name, row in self.rows.items()]
        return bars(f"{self.title}: {metric} in %, {INTERVALS}", found)


def result_grid(rows: Mapping[str, RetrievalEstimate], documents: Mapping[str, int]) -> Grid:
    """Return a row for each way to search: its metrics, what chance has of each, and the numbers of both sides."""
    lines = []
    for name, row in rows.items():
        queries = max(found.queries for found in row.metrics.values())
        lines.append(
            [
                name,
                *(share_cell(row.metrics.get(metric), row.chance.get(metric)) for metric in METRICS),
                " / ".join(f"{100 * row.chance[metric]:.1f}" for metric in METRICS if metric in row.chance),
                f"{documents[name]:,}",
                f"{queries:,}",
            ]
        )
    return Grid(["row", *METRICS, "chance", "documents", "n"], lines, set())


def retrieval_markdown(results: Sequence[RetrievalTable], notes: Sequence[str]) -> str:
    """Return the tables and notes as Markdown."""
    tables = [markdown_table(*table) for each in results for table in each.tables()]
    return "\n".join(["# Search by region", "", *(f"- {note}" for note in notes), "", *tables])


def retrieval_page(results: Sequence[RetrievalTable], notes: Sequence[str], sheet: Path | None) -> str:
    """Return the tables, plots and notes as a page, which refers to no other file. sheet: an image of hits."""
    parts = ["<h1>Search by region</h1>", note_list(notes), "<h2>Plots</h2>", *(each.plot() for each in results)]
    parts += ["<h2>Tables</h2>", *(html_table(table) for each in results for table in each.tables())]
    if sheet is not None:
        encoded = base64.b64encode(sheet.read_bytes()).decode()
        parts += [f"<h2>Hits</h2><p>{escape(SHEET)}</p>", f'<img src="data:image/png;base64,{encoded}" alt="hits">']
    return page("Search by region", parts)


SHEET = (
    "The first queries of each set, none chosen: the click at the left, and the ten regions of other scenes that are"
    " nearest to it, each with the name of its object."
)
