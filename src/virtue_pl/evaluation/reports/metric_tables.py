"""Tables of an evaluation's metrics: one of each benchmark's sets and averages, and one beside published results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from virtue_pl.evaluation.reports.tables import Grid, TerminalTable, TitledTable
from virtue_pl.evaluation.statistics.averages import Average, published_results
from virtue_pl.types import RankedSet

METRICS = ("precision@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "map@10", "mrr@10")
NOT_IN_TERMINAL = ("ndcg@5", "map@10")
SHORT_NAMES = {"precision@1": "P@1", "recall@5": "R@5", "recall@10": "R@10", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}
"""Short names of metrics on the terminal, where `NOT_IN_TERMINAL` are left out."""


def metric_tables(
    found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet], means: Sequence[Average]
) -> list[TitledTable]:
    """Return the tables of all benchmarks. found: metrics by set."""
    benchmarks = dict.fromkeys(ranked.about.benchmark for ranked in sets)
    return [
        table
        for benchmark in benchmarks
        for table in benchmark_tables(benchmark, found, sets, [mean for mean in means if mean.benchmark == benchmark])
    ]


def benchmark_tables(
    benchmark: str, found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet], means: Sequence[Average]
) -> Iterator[TitledTable]:
    """Return the tables of one benchmark."""
    members = [ranked.about for ranked in sets if ranked.about.benchmark == benchmark]
    lines = [
        [each.name, *(percent(found[each.name][name]) for name in METRICS), str(found[each.name]["n"])]
        for each in members
    ]
    lines += [
        [f"mean, {mean.group} ({mean.sets} of {mean.of})", *(percent(mean.metrics[name]) for name in METRICS), ""]
        for mean in means
    ]
    yield TitledTable(f"{benchmark}", Grid(["set", *METRICS, "n"], lines, set()), "%")
    reported = published_results().get(benchmark)
    if reported:
        columns = [*(mean.group for mean in means), *(each.name for each in members)]
        here = [
            *(mean.metrics["precision@1"] for mean in means),
            *(found[each.name]["precision@1"] for each in members),
        ]
        rows = [["this run", *map(percent, here)]]
        rows += [
            [model, *(percent(scores[column]) if column in scores else "" for column in columns)]
            for model, scores in reported.items()
        ]
        yield TitledTable(
            f"{benchmark}, beside published results", Grid(["model", *columns], rows, set()), "precision@1 (hit@1), %"
        )


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}"


def terminal_table(table: TitledTable) -> TerminalTable:
    """Return a table for the terminal: fewer metrics, under short names; the rest is in the files.

    A table of more than ten columns is transposed, so that sets stand below each other.
    """
    cells = drop_columns(table.cells, NOT_IN_TERMINAL)
    if len(cells.columns) > 10:
        turned = list(zip(cells.columns, *cells.rows, strict=True))
        cells = Grid(list(turned[0]), [list(line) for line in turned[1:]], set())
    return TerminalTable(
        f"{table.title}, {table.caption}", cells._replace(columns=[short_name(name) for name in cells.columns])
    )


def drop_columns(cells: Grid, names: Sequence[str]) -> Grid:
    """Return the cells without the named columns."""
    columns = [column for column, name in enumerate(cells.columns) if name not in names]
    best = {(row, columns.index(column)) for row, column in cells.best if column in columns}
    return Grid(
        [cells.columns[column] for column in columns], [[row[column] for column in columns] for row in cells.rows], best
    )


def short_name(name: str) -> str:
    """Return a column's short name: "precision@1" -> "P@1"; the names of published models in several lines."""
    return SHORT_NAMES.get(name) or name.replace(" ", "\n")
