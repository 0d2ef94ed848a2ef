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

PRECISION = "% right ± standard error"


class Grid(NamedTuple):
    """A table before it is drawn. best: (row, column) of the cells to mark, as each ranking's best mode."""

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
    grids = {task: grid(results[task], (guesses or {}).get(task, {}), row_order) for task in sorted(results)}
    return [rich_table(f"{task}, {PRECISION}", cells) for task, cells in grids.items()]


def rich_table(title: str, cells: Grid) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for number, name in enumerate(cells.columns):
        table.add_column(name.replace("_", "\n"), justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(cells.rows):
        table.add_row(*marked(cells, number, "[bold]{}[/bold]"), style="dim" if row[0] == "chance" else None)
    return table


def markdown(results: Results, guesses: Chance | None = None, row_order: Sequence[str] = ROWS) -> str:
    """The same tables for a README."""
    return "\n".join(markdown_table(task, grid(results[task], (guesses or {}).get(task, {}), row_order), PRECISION) for task in sorted(results))


def markdown_table(title: str, cells: Grid, caption: str) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(cells.columns) + " |", "|---|" + "---:|" * (len(cells.columns) - 1)]
    lines += ["| " + " | ".join(marked(cells, number, "**{}**")) + " |" for number in range(len(cells.rows))]
    return "\n".join([*lines, "", caption, ""])


def marked(cells: Grid, number: int, bold: str) -> list[str]:
    """A row's cells, the best with `bold` around them."""
    return [bold.format(text) if (number, column) in cells.best else text for column, text in enumerate(cells.rows[number])]
