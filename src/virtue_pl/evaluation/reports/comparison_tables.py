"""Tables of a comparison: for each task one of shares and one of differences, all with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtue_pl.evaluation.reports.tables import Grid, TerminalTable, TitledTable, markdown_table
from virtue_pl.evaluation.statistics.bootstrap import LEVEL, Estimate
from virtue_pl.evaluation.statistics.compare import Comparison, benchmark_of
from virtue_pl.evaluation.statistics.summary import Chance

Row = Mapping[str, Estimate]


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
    """Return the tables as Markdown."""
    return "\n".join(markdown_table(*table) for table in tables(comparison, chance_levels or {}))


def tables(comparison: Comparison, chance_levels: Chance) -> Iterator[TitledTable]:
    """Yield one table of all tasks where there are several, then shares and differences of each task.

    Runs are in the comparison's order.
    """
    if len(comparison.shares) > 1:
        yield TitledTable("All tasks", overview_grid(comparison), f"hit@1, % right, with {LEVEL:.0%} intervals")
    for task, rows in sorted(comparison.shares.items()):
        yield TitledTable(task, share_grid(rows, chance_levels.get(task, {})), f"% right, with {LEVEL:.0%} intervals")
        if task in comparison.differences:
            found, references = comparison.differences[task], comparison.references
            others = sorted({references[name] for name in found})
            caption = (
                f"points more than {' or '.join(others)}, paired, with {LEVEL:.0%} intervals; bold where zero is"
                " outside"
            )
            yield TitledTable(
                f"{task}, differences", difference_grid(found, references if len(others) > 1 else {}), caption
            )


def overview_grid(comparison: Comparison, ranking: str = "hit@1") -> Grid:
    """Return a row for each run and a column for each task, the best of each column marked.

    A benchmark's tasks come before their mean.
    """
    columns: dict[str, Row] = {}
    ends = [task.rpartition("/")[2] for task in comparison.shares]
    for benchmark in dict.fromkeys(map(benchmark_of, comparison.shares)):
        for task, rows in sorted(comparison.shares.items()):
            if benchmark_of(task) == benchmark:
                end = task.rpartition("/")[2]
                columns[end if ends.count(end) == 1 else task] = {
                    name: row[ranking] for name, row in rows.items() if ranking in row
                }
        if benchmark in comparison.means:
            columns[f"mean {benchmark}"] = comparison.means[benchmark]
    lines = [
        [name, *(cell({ranking: row[name]} if name in row else {}, ranking, "") for row in columns.values())]
        for name in comparison.runs
    ]
    shares = [[row[name].mean if name in row else -1.0 for name in comparison.runs] for row in columns.values()]
    best = {
        (line, column)
        for column, found in enumerate(shares, 1)
        for line, share in enumerate(found)
        if share == max(found)
    }
    return Grid(["run", *columns], lines, best)


def share_grid(rows: Mapping[str, Row], chance_levels: Mapping[str, float]) -> Grid:
    """Return one task's shares; the best of each ranking is marked."""
    rankings = rankings_of(rows)
    lines = [[name, *(cell(row, ranking, "") for ranking in rankings), *counts(row)] for name, row in rows.items()]
    shares = [[row[ranking].mean if ranking in row else -1.0 for row in rows.values()] for ranking in rankings]
    best = {
        (line, column)
        for column, of_ranking in enumerate(shares, 1)
        for line, share in enumerate(of_ranking)
        if share == max(of_ranking)
    }
    if chance_levels:
        lines.append(
            [
                "chance",
                *(f"{100 * chance_levels[ranking]:.1f}" if ranking in chance_levels else "" for ranking in rankings),
                "",
                "",
            ]
        )
    return Grid(["run", *rankings, "n", "seeds"], lines, best)


def counts(row: Row) -> tuple[str, str]:
    """Return the numbers of queries and of seeds, each the largest of all rankings."""
    return str(max(found.queries for found in row.values())), str(max(found.seeds for found in row.values()))


def difference_grid(rows: Mapping[str, Row], references: Mapping[str, str]) -> Grid:
    """Return one task's differences, those whose interval excludes zero marked.

    A last column names the reference where `references` is not empty.
    """
    rankings = rankings_of(rows)
    lines = [
        [name, *(cell(row, ranking, "+") for ranking in rankings), *([references[name]] if references else [])]
        for name, row in rows.items()
    ]
    cells = (
        (line, column, row[ranking])
        for line, row in enumerate(rows.values())
        for column, ranking in enumerate(rankings, 1)
        if ranking in row
    )
    return Grid(
        ["run", *rankings, *(["against"] if references else [])],
        lines,
        {(line, column) for line, column, found in cells if found.differs},
    )


def rankings_of(rows: Mapping[str, Row]) -> list[str]:
    """Return the names of all rankings, sorted."""
    return sorted({ranking for row in rows.values() for ranking in row})


def cell(row: Row, ranking: str, sign: str) -> str:
    """Return percent and interval, with a plus before positive ones if `sign` is "+"; "" without such a ranking."""
    if ranking not in row:
        return ""
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in row[ranking][:3])
    return f"{mean} ({low}…{high})"
