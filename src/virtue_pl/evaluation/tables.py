"""Results as people read them: one table a task, rows = modes, columns = rankings, in percent with standard errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from virtue_pl.evaluation.report import Chance, Results

ROWS = ("box", "point", "mask", "no_prompt", "none", "no_segmentation", "blind", "set_blind")
"""The usual order of rows; other modes follow by name."""

NO_RANKING = ("n", "standard_error")


class Grid(NamedTuple):
    """A table before it is drawn. best: (row, column) of each ranking's best mode."""

    columns: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """`names`, those of `first` in its order, then the others by name."""
    places = {name: place for place, name in enumerate(first)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def grid(modes: Mapping[str, Mapping[str, Any]], guesses: Mapping[str, float], row_order: Sequence[str] = ROWS) -> Grid:
    """One task's cells: "mode, rankings ..., n", and a last row for chance where it is known."""
    names = ordered(modes, row_order)
    rankings = sorted({name for row in modes.values() for name in row if name not in NO_RANKING})
    rows = [[mode, *(cell(modes[mode], ranking) for ranking in rankings), str(modes[mode]["n"])] for mode in names]
    best = set()
    for column, ranking in enumerate(rankings, start=1):
        shares = [modes[mode].get(ranking, -1.0) for mode in names]
        best |= {(row, column) for row, share in enumerate(shares) if share == max(shares)}
    if guesses:
        rows.append(["chance", *(f"{100 * guesses[ranking]:.1f}" if ranking in guesses else "" for ranking in rankings), ""])
    return Grid(["mode", *rankings, "n"], rows, best)


def cell(row: Mapping[str, Any], ranking: str) -> str:
    """Percent right and its standard error; empty where the mode was not ranked so."""
    return f"{100 * row[ranking]:.1f}±{100 * row['standard_error'][ranking]:.1f}" if ranking in row else ""


def rich_tables(results: Results, guesses: Chance | None = None, row_order: Sequence[str] = ROWS) -> list[Table]:
    """One table a task for the terminal, the best of each column in bold."""
    tables = []
    for task in sorted(results):
        cells = grid(results[task], (guesses or {}).get(task, {}), row_order)
        table = Table(title=f"{task}, % right ± standard error", title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
        for name in cells.columns:
            table.add_column(name.replace("_", "\n"), justify="left" if name == "mode" else "right", no_wrap=True)
        for number, row in enumerate(cells.rows):
            marked = [f"[bold]{text}[/bold]" if (number, column) in cells.best else text for column, text in enumerate(row)]
            table.add_row(*marked, style="dim" if row[0] == "chance" else None)
        tables.append(table)
    return tables


def markdown(results: Results, guesses: Chance | None = None, row_order: Sequence[str] = ROWS) -> str:
    """The same tables for a README."""
    return "\n".join(markdown_table(task, grid(results[task], (guesses or {}).get(task, {}), row_order)) for task in sorted(results))


def markdown_table(task: str, cells: Grid) -> str:
    lines = [f"### {task}", "", "| " + " | ".join(cells.columns) + " |", "|---|" + "---:|" * (len(cells.columns) - 1)]
    for number, row in enumerate(cells.rows):
        marked = [f"**{text}**" if (number, column) in cells.best else text for column, text in enumerate(row)]
        lines.append("| " + " | ".join(marked) + " |")
    return "\n".join([*lines, "", "% right ± standard error", ""])
