"""Tables of results: one for each task, rows = modes, columns = rankings, in percent with standard errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from virtue_pl.evaluation.statistics.intervals import NORMAL
from virtue_pl.evaluation.statistics.summary import Chance, Results, standard_errors

ROWS = ("box", "point", "mask", "no_prompt", "none", "no_segmentation", "blind", "set_blind")
"""The usual order of rows; other modes follow by name."""

NO_RANKING = ("n", "standard_error", "images", "clustered_standard_error")

NOT_ABOVE = "°"
"""Stands behind a figure whose 95 % interval reaches down to chance."""


Lost = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Number of queries that were not ranked: task -> mode (or run) -> reason."""
LEFT_OUT = "left out"


class Grid(NamedTuple):
    """Cells of a table. best: (row, column) of the cells to mark, which differ from all others by their intervals.

    Example:
        >>> Grid(["mode", "hit@1"], [["box", "61.0"], ["point", "58.2"]], best={(0, 1)}).columns
        ['mode', 'hit@1']
    """

    columns: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


class TitledTable(NamedTuple):
    """Table of a report, with its title and caption.

    Example:
        >>> TitledTable("scar", Grid(["mode"], [["box"]], set()), "hit@1, %").title
        'scar'
    """

    title: str
    cells: Grid
    caption: str


def sort_names(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return the names sorted: those in `first` in its order, then the others by name."""
    order = {name: index for index, name in enumerate(first)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def grid(
    modes: Mapping[str, Mapping[str, Any]], chance_levels: Mapping[str, float], row_order: Sequence[str] = ROWS
) -> Grid:
    """Return one task's cells: "mode, rankings ..., n", and a last row for chance where its levels are given.

    Nothing is marked: rows are of one training each, from which no difference between models follows.
    """
    names = sort_names(modes, row_order)
    rankings = sorted({name for row in modes.values() for name in row if name not in NO_RANKING})
    rows = [
        [mode, *(cell(modes[mode], ranking, chance_levels.get(ranking)) for ranking in rankings), str(modes[mode]["n"])]
        for mode in names
    ]
    if chance_levels:
        rows.append(["chance", *chance_cells(rankings, chance_levels), ""])
    return Grid(["mode", *rankings, "n"], rows, set())


def chance_cells(rankings: Iterable[str], chance_levels: Mapping[str, float]) -> list[str]:
    """Return the chance level of each ranking in percent, "" where it is not known."""
    return [f"{100 * chance_levels[ranking]:.1f}" if ranking in chance_levels else "" for ranking in rankings]


def cell(row: Mapping[str, Any], ranking: str, chance_level: float | None = None) -> str:
    """Return the percentage of right answers and its standard error; "" where the mode has no such ranking.

    A figure whose interval reaches down to chance has `NOT_ABOVE` behind it.
    """
    return figure(row[ranking], standard_errors(row)[ranking], chance_level) if ranking in row else ""


def figure(share: float, error: float | None, chance_level: float | None = None) -> str:
    """Return a share in percent with its standard error, "?" without one, and `NOT_ABOVE` where it may be chance."""
    low = chance_level is not None and (error is None or share - NORMAL * error <= chance_level)
    return f"{100 * share:.1f}±{'?' if error is None else percent_beside(error)}{NOT_ABOVE if low else ''}"


def percent_beside(value: float, other: float = 0.0, sign: str = "") -> str:
    """Return a value in percent, with as many digits as tell it from another, which has one behind the point.

    An uncertainty is never shown as none: of 20,000 queries that are all right, 0.018 % stays. sign: "+" for a plus
    before what is positive.

    Example:
        >>> percent_beside(0.0062), percent_beside(0.00018), percent_beside(0.99982, other=1.0)
        ('0.6', '0.02', '99.98')
    """
    for digits in range(1, 12):
        shown = format(100 * value, f"{sign}.{digits}f")
        if value == other or float(shown) != float(f"{100 * other:.1f}"):
            return shown
    return format(100 * value, f"{sign}.1f")


def precision(modes: Mapping[str, Mapping[str, Any]], chance_levels: Mapping[str, float]) -> str:
    """Return the caption of a task's table, which says what its figures are over."""
    clustered = ", clustered by image" if any("images" in row for row in modes.values()) else ""
    mark = f"; {NOT_ABOVE}: not above chance" if chance_levels else ""
    return f"% right ± standard error over queries{clustered}, each row of one training{mark}"


def task_tables(results: Results, chance_levels: Chance, lost: Lost | None = None) -> list[TitledTable]:
    """Return one table for each task. lost: what its rows leave out, which it then says."""
    levels = {task: chance_levels.get(task, {}) for task in sorted(results)}
    tables = [
        TitledTable(task, grid(results[task], level), precision(results[task], level)) for task, level in levels.items()
    ]
    ranked = {task: {mode: row["n"] for mode, row in modes.items()} for task, modes in results.items()}
    return [with_left_out(table, ranked[table.title], (lost or {}).get(table.title, {})) for table in tables]


def with_left_out(table: TitledTable, ranked: Mapping[str, int], lost: Mapping[str, Mapping[str, int]]) -> TitledTable:
    """Return a table that says what its rows leave out: in its caption where all leave out the same, else in a column.

    ranked: number of queries of each row, by what stands in its first cell. lost: reasons by the same.
    """
    found = {
        name: describe_share(lost.get(name, {}), n + sum(lost.get(name, {}).values())) for name, n in ranked.items()
    }
    if not any(found.values()):
        return table
    if len(set(found.values())) == 1:
        return table._replace(caption=f"{table.caption}; {LEFT_OUT}: {next(iter(found.values()))}")
    cells = table.cells
    rows = [[*row, found.get(row[0], "")] for row in cells.rows]
    return table._replace(cells=Grid([*cells.columns, LEFT_OUT], rows, cells.best))


def describe_share(counts: Mapping[str, int], total: int) -> str:
    """Return how many of all queries were left out, by reason; "" for none.

    Example:
        >>> describe_share({"missing image": 2, "empty mask": 1}, total=1_000)
        '3 of 1,000 (2 missing image, 1 empty mask)'
    """
    if not counts:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{sum(counts.values()):,} of {total:,} ({reasons})"


def rich_tables(results: Results, chance_levels: Chance | None = None, lost: Lost | None = None) -> list[TerminalTable]:
    """Return one table for each task for the terminal."""
    tables = task_tables(results, chance_levels or {}, lost)
    return [TerminalTable(f"{title}, {caption}", cells) for title, cells, caption in tables]


class TerminalTable(NamedTuple):
    """Table for `Console.print`; one that is wider than the terminal is split into blocks of columns.

    Example:
        >>> Console(width=40).print(TerminalTable("scar", Grid(["mode", "n"], [["box", "400"]], set())))
        scar
        mode   n
        ────────
        box  400
        <BLANKLINE>
        <BLANKLINE>
    """

    title: str
    cells: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="italic")
        for columns in blocks(self.cells, options.max_width):
            yield rich_block(self.cells, columns)
        yield ""


def blocks(cells: Grid, width: int) -> list[list[int]]:
    """Return blocks of column indices, each as many as fit into the width; every block begins with the first column."""
    widths = [
        max(map(longest_line, (heading(name), *(row[column] for row in cells.rows))))
        for column, name in enumerate(cells.columns)
    ]
    found: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        if len(found[-1]) > 1 and sum(1 + widths[other] for other in found[-1]) + widths[column] > width:
            found.append([0])
        found[-1].append(column)
    return found


def longest_line(text: str) -> int:
    """Return the length of the longest line of a text."""
    return max(map(len, text.split("\n")))


def heading(name: str) -> str:
    """Return a column's name broken into several short lines."""
    return name.replace("_", "\n").replace(", ", ",\n")


def rich_block(cells: Grid, columns: Sequence[int]) -> Table:
    """Return the given columns as a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for column in columns:
        table.add_column(heading(cells.columns[column]), justify="right" if column else "left", no_wrap=True)
    for number, row in enumerate(cells.rows):
        cells_of_row = highlight_best(cells, number, "[bold]{}[/bold]")
        table.add_row(*(cells_of_row[column] for column in columns), style="dim" if row[0] == "chance" else None)
    return table


def markdown(results: Results, chance_levels: Chance | None = None, lost: Lost | None = None) -> str:
    """Return one table for each task as Markdown."""
    return "\n".join(markdown_table(*table) for table in task_tables(results, chance_levels or {}, lost))


def markdown_table(title: str, cells: Grid, caption: str) -> str:
    """Return one table as Markdown."""
    lines = [f"### {title}", "", "| " + " | ".join(cells.columns) + " |", "|---|" + "---:|" * (len(cells.columns) - 1)]
    lines += ["| " + " | ".join(highlight_best(cells, number, "**{}**")) + " |" for number in range(len(cells.rows))]
    return "\n".join([*lines, "", caption, ""])


def highlight_best(cells: Grid, number: int, bold: str) -> list[str]:
    """Return a row's cells, the best in the format `bold`."""
    return [
        bold.format(text) if (number, column) in cells.best else text for column, text in enumerate(cells.rows[number])
    ]
