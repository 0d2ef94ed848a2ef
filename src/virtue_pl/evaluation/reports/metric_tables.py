"""Tables of an evaluation's metrics: one of each benchmark's sets and averages, and one beside published results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from virtue_pl.evaluation.reports.tables import NOT_ABOVE, Grid, TerminalTable, TitledTable, figure
from virtue_pl.evaluation.statistics.averages import Average, published_results
from virtue_pl.evaluation.statistics.metric_summaries import MetricSummary, summarise_mean, summarise_metrics
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import RankedSet, SetDescription

FIRST = "precision@1"
CERTAIN = "-"
"""Stands for a metric that no ranking can miss, as recall@10 of ten candidates."""
METRICS = ("precision@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "map@10", "mrr@10")
NOT_IN_TERMINAL = ("ndcg@5", "map@10")
SHORT_NAMES = {"precision@1": "P@1", "recall@5": "R@5", "recall@10": "R@10", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}
"""Short names of metrics on the terminal, where `NOT_IN_TERMINAL` are left out."""


CAPTION = f"% ± standard error over queries, clustered by image; {NOT_ABOVE}: not above chance; {CERTAIN}: always right"


def metric_tables(
    found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet], means: Sequence[Average], ranks: RankRows
) -> list[TitledTable]:
    """Return the tables of all benchmarks. found: metrics by set. ranks: those that the metrics are of."""
    benchmarks = dict.fromkeys(ranked.about.benchmark for ranked in sets)
    about = [ranked.about for ranked in sets]
    return [
        table
        for benchmark in benchmarks
        for table in benchmark_tables(
            benchmark,
            found,
            [each for each in about if each.benchmark == benchmark],
            [mean for mean in means if mean.benchmark == benchmark],
            ranks,
        )
    ]


def benchmark_tables(
    benchmark: str,
    found: Mapping[str, Mapping[str, float]],
    members: Sequence[SetDescription],
    means: Sequence[Average],
    ranks: RankRows,
) -> Iterator[TitledTable]:
    """Yield the tables of one benchmark: each set over its chance, the means, and a row beside published ones."""
    of_sets = summarise_metrics(ranks, members)
    of_means = [summarise_mean(mean, ranks, members) for mean in means]
    lines = []
    for each in members:
        cells = [metric_cell(found[each.name], of_sets[each.name], name) for name in METRICS]
        lines += [[each.name, *cells, str(found[each.name]["n"])], chance_line(of_sets[each.name])]
    for mean, summary in zip(means, of_means, strict=True):
        cells = [metric_cell(mean.metrics, summary, name) for name in METRICS]
        lines += [[f"mean, {mean.group} ({mean.sets} of {mean.of})", *cells, ""], chance_line(summary)]
    yield TitledTable(f"{benchmark}", Grid(["set", *METRICS, "n"], lines, set()), CAPTION)
    reported = published_results().get(benchmark)
    if reported:
        columns = [*(mean.group for mean in means), *(each.name for each in members)]
        summaries = [*of_means, *(of_sets[each.name] for each in members)]
        values = [*(mean.metrics for mean in means), *(found[each.name] for each in members)]
        here = [metric_cell(row, summary, FIRST) for row, summary in zip(values, summaries, strict=True)]
        rows = [["this run", *here], ["chance", *(percent(summary.chance[FIRST]) for summary in summaries)]]
        rows += [
            [model, *(percent(scores[column]) if column in scores else "" for column in columns)]
            for model, scores in reported.items()
        ]
        caption = f"{FIRST} (hit@1), {CAPTION}"
        yield TitledTable(f"{benchmark}, beside published results", Grid(["model", *columns], rows, set()), caption)


def metric_cell(values: Mapping[str, float], summary: MetricSummary, name: str) -> str:
    """Return a metric with its standard error, or `CERTAIN` where lists are so short that it is always 100 %."""
    if summary.chance[name] == 1:
        return CERTAIN
    return figure(values[name], summary.errors[name], summary.chance[name])


def chance_line(summary: MetricSummary) -> list[str]:
    """Return the row of chance levels under a set's."""
    levels = [summary.chance[name] for name in METRICS]
    return ["chance", *(CERTAIN if level == 1 else percent(level) for level in levels), ""]


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
