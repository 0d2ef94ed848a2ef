"""Tables of a comparison: for each task one of shares and one of differences, all with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from virtue_pl.evaluation.reports.tables import (
    LEFT_OUT,
    NOT_ABOVE,
    Grid,
    TerminalTable,
    TitledTable,
    chance_cells,
    markdown_table,
    percent_beside,
    with_left_out,
)
from virtue_pl.evaluation.statistics.compare import RANKING, Comparison, benchmark_of
from virtue_pl.evaluation.statistics.intervals import LEVEL, QUERIES, Estimate
from virtue_pl.evaluation.statistics.summary import Chance

Row = Mapping[str, Estimate]
BEST = "bold: above every other model, each difference excluding zero"
OF_THESE = "an interval over queries alone is of these trainings, and says nothing of their variants"


def rich_comparison(comparison: Comparison, chance_levels: Chance | None = None) -> list[TerminalTable]:
    """Return the tables for the terminal, each interval below its value."""
    return [
        TerminalTable(f"{title}, {caption}", stack_intervals(cells))
        for title, cells, caption in tables(comparison, chance_levels or {})
    ]


def stack_intervals(cells: Grid) -> Grid:
    """Return the cells with each interval on a line of its own."""
    return cells._replace(rows=[[text.replace(" (", "\n").rstrip(")") for text in row] for row in cells.rows])


def markdown_comparison(comparison: Comparison, chance_levels: Chance | None = None) -> str:
    """Return the tables as Markdown, and the comparison's notes."""
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    return "\n".join([*(markdown_table(*table) for table in tables(comparison, chance_levels or {})), notes])


def tables(comparison: Comparison, chance_levels: Chance) -> Iterator[TitledTable]:
    """Yield one table of all tasks where there are several, then shares and differences of each task.

    Runs are in the comparison's order.
    """
    if len(comparison.shares) > 1:
        found = [row for rows in comparison.shares.values() for row in rows.values()]
        title = f"{RANKING}, {share_caption(found, bool(chance_levels))}"
        yield TitledTable("All tasks", overview_grid(comparison, chance_levels), title)
        if comparison.mean_differences:
            means = {f"mean {name}": rows for name, rows in comparison.mean_differences.items()}
            by_run = {run: {name: rows[run] for name, rows in means.items() if run in rows} for run in comparison.runs}
            yield differences("Means, differences", {run: row for run, row in by_run.items() if row}, comparison)
    for task, rows in sorted(comparison.shares.items()):
        levels = chance_levels.get(task, {})
        caption = share_caption([*rows.values()], bool(levels))
        table = TitledTable(task, share_grid(rows, levels, comparison.best.get(task, {})), caption)
        yield with_left_out(table, {name: queries_of(row) for name, row in rows.items()}, comparison.lost(task))
        if task in comparison.differences:
            yield differences(f"{task}, differences", comparison.differences[task], comparison)


def share_caption(rows: Sequence[Row], with_chance: bool) -> str:
    """Return what the figures of a table of shares are, what their intervals are over, and what is marked."""
    kinds = {found.over for row in rows for found in row.values()}
    over = f"over {kinds.pop()}" if len(kinds) == 1 else "over trainings and queries, of one training over queries"
    mark = f"; {NOT_ABOVE}: not above chance" if with_chance else ""
    return f"% right, {LEVEL:.0%} intervals {over}, clustered by image; {BEST}{mark}"


def differences(title: str, rows: Mapping[str, Row], comparison: Comparison) -> TitledTable:
    """Return a table of differences, which says how many of its marks chance alone would make."""
    others = sorted({comparison.references[name] for name in rows})
    found = [estimate for row in rows.values() for estimate in row.values()]
    of_variants = [estimate for estimate in found if estimate.over != QUERIES]
    paired = "unpaired" if comparison.queries == "any" else "paired"
    caption = f"points more than {' or '.join(others)}, {paired}, {LEVEL:.0%} intervals clustered by image"
    if of_variants:
        by_chance = f"{(1 - LEVEL) * len(of_variants):.2g}"
        caption += (
            f"; bold where zero is outside: of these {len(of_variants)}, about {by_chance} would be between equals"
        )
    if len(of_variants) < len(found):
        caption += f"; {OF_THESE}"
    return TitledTable(title, difference_grid(rows, comparison.references if len(others) > 1 else {}), caption)


class Column(NamedTuple):
    """Column of the table of all tasks.

    best: the run to mark. chance_level: None where it is not known. tasks: what the column is over.

    Example:
        >>> Column("seen", {"virtue": Estimate(0.8, 0.77, 0.83, 700, 1)}, None, 0.1).chance_level
        0.1
    """

    name: str
    row: Row
    best: str | None
    chance_level: float | None
    tasks: Sequence[str] = ()


def overview_grid(comparison: Comparison, chance_levels: Chance | None = None) -> Grid:
    """Return a row for each run and a column for each task, then chance, and the queries that are ranked and left out.

    A benchmark's tasks come before their mean.
    """
    columns = list(overview_columns(comparison, chance_levels or {}))
    lines = [
        [name, *(share_cell(column.row.get(name), column.chance_level) for column in columns)]
        for name in comparison.runs
    ]
    marked = {(comparison.runs.index(column.best), number) for number, column in enumerate(columns, 1) if column.best}
    if chance_levels:
        levels = [column.chance_level for column in columns]
        lines.append(["chance", *("" if level is None else f"{100 * level:.1f}" for level in levels)])
    lines.append(["n", *(str(max((found.queries for found in column.row.values()), default="")) for column in columns)])
    lines += left_out_lines(comparison, columns)
    return Grid(["run", *(column.name for column in columns)], lines, marked)


def left_out_lines(comparison: Comparison, columns: Sequence[Column]) -> list[list[str]]:
    """Return a line with the number of queries that were not ranked; one of each run where they differ."""
    numbers = {
        name: [
            sum(sum(comparison.lost(task).get(name, {}).values()) for task in column.tasks) if name in column.row else 0
            for column in columns
        ]
        for name in comparison.runs
    }
    together = [max(number) for number in zip(*numbers.values(), strict=True)]
    if not any(together):
        return []
    alike = all(
        number == most
        for name, row in numbers.items()
        for number, most, column in zip(row, together, columns, strict=True)
        if name in column.row
    )
    lines = {LEFT_OUT: together} if alike else {f"{LEFT_OUT}: {name}": row for name, row in numbers.items() if any(row)}
    return [[name, *(f"{number:,}" if number else "" for number in row)] for name, row in lines.items()]


def overview_columns(comparison: Comparison, chance_levels: Chance, ranking: str = RANKING) -> Iterator[Column]:
    """Yield the tasks of each benchmark, and their mean."""
    ends = [task.rpartition("/")[2] for task in comparison.shares]
    for benchmark in dict.fromkeys(map(benchmark_of, comparison.shares)):
        members = sorted(task for task in comparison.shares if benchmark_of(task) == benchmark)
        levels = [chance_levels.get(task, {}).get(ranking) for task in members]
        for task, level in zip(members, levels, strict=True):
            end = task.rpartition("/")[2]
            row = {name: found[ranking] for name, found in comparison.shares[task].items() if ranking in found}
            best = comparison.best.get(task, {}).get(ranking)
            yield Column(end if ends.count(end) == 1 else task, row, best, level, [task])
        if benchmark in comparison.means:
            name, measured = f"mean {benchmark}", [level for level in levels if level is not None]
            level = sum(measured) / len(measured) if len(measured) == len(members) else None
            yield Column(name, comparison.means[benchmark], comparison.best.get(name, {}).get(ranking), level, members)


def share_grid(
    rows: Mapping[str, Row], chance_levels: Mapping[str, float], best: Mapping[str, str] | None = None
) -> Grid:
    """Return one task's shares. best: ranking -> the run to mark."""
    rankings, names = rankings_of(rows), list(rows)
    lines = [
        [
            name,
            *(share_cell(row.get(ranking), chance_levels.get(ranking)) for ranking in rankings),
            *counts(row),
        ]
        for name, row in rows.items()
    ]
    marked = {(names.index(name), rankings.index(ranking) + 1) for ranking, name in (best or {}).items()}
    if chance_levels:
        lines.append(["chance", *chance_cells(rankings, chance_levels), "", ""])
    return Grid(["run", *rankings, "n", "seeds"], lines, marked)


def counts(row: Row) -> tuple[str, str]:
    """Return the numbers of queries and of seeds, each the largest of all rankings."""
    return str(queries_of(row)), str(max(found.seeds for found in row.values()))


def queries_of(row: Row) -> int:
    """Return the largest number of queries of a row's rankings."""
    return max(found.queries for found in row.values())


def difference_grid(rows: Mapping[str, Row], references: Mapping[str, str]) -> Grid:
    """Return one task's differences, those that distinguish variants marked.

    Further columns name the reference where `references` is not empty, and what the intervals are over.
    """
    rankings = rankings_of(rows)
    lines = [
        [
            name,
            *(cell(row, ranking, "+") for ranking in rankings),
            *([references[name]] if references else []),
            over(row),
        ]
        for name, row in rows.items()
    ]
    cells = (
        (line, column, row[ranking])
        for line, row in enumerate(rows.values())
        for column, ranking in enumerate(rankings, 1)
        if ranking in row
    )
    return Grid(
        ["run", *rankings, *(["against"] if references else []), "over"],
        lines,
        {(line, column) for line, column, found in cells if found.differs},
    )


def over(row: Row) -> str:
    """Return what a row's intervals are over."""
    kinds = {f"{found.over}{', spread borrowed' if found.borrowed else ''}" for found in row.values()}
    return "; ".join(sorted(kinds))


def share_cell(found: Estimate | None, chance_level: float | None) -> str:
    """Return percent and interval, `NOT_ABOVE` behind the percent where the interval reaches down to chance."""
    if found is None:
        return ""
    mark = NOT_ABOVE if chance_level is not None and found.low <= chance_level else ""
    low, high = (percent_beside(value, found.mean) for value in (found.low, found.high))
    return f"{100 * found.mean:.1f}{mark} ({low}…{high})"


def rankings_of(rows: Mapping[str, Row]) -> list[str]:
    """Return the names of all rankings, sorted."""
    return sorted({ranking for row in rows.values() for ranking in row})


def cell(row: Row, ranking: str, sign: str) -> str:
    """Return percent and interval, with a plus before positive ones if `sign` is "+"; "" without such a ranking."""
    if ranking not in row:
        return ""
    mean, low, high = row[ranking][:3]
    ends = [percent_beside(value, mean, sign) for value in (low, high)]
    return f"{format(100 * mean, f'{sign}.1f')} ({ends[0]}…{ends[1]})"
