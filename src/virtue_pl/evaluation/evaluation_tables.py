"""An evaluation's metrics as people read them: of each benchmark, one table of sets and one of averages beside the published rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from virtue_pl.evaluation.averages import Average, published
from virtue_pl.evaluation.tables import Grid, TerminalTable, Titled
from virtue_pl.types import RankedSet

SHOWN = ("precision@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "map@10", "mrr@10")
LEFT_OUT = ("ndcg@5", "map@10")
SHORT = {"precision@1": "P@1", "recall@5": "R@5", "recall@10": "R@10", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}
"""What a terminal does not show, and how it names the others."""


def metric_tables(found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet], means: Sequence[Average]) -> list[Titled]:
    benchmarks = dict.fromkeys(ranked.about.benchmark for ranked in sets)
    return [table for benchmark in benchmarks for table in benchmark_tables(benchmark, found, sets, [mean for mean in means if mean.benchmark == benchmark])]


def benchmark_tables(benchmark: str, found: Mapping[str, Mapping[str, float]], sets: Sequence[RankedSet], means: Sequence[Average]) -> Iterator[Titled]:
    members = [ranked.about for ranked in sets if ranked.about.benchmark == benchmark]
    lines = [[each.name, *(percent(found[each.name][name]) for name in SHOWN), str(found[each.name]["n"])] for each in members]
    lines += [[f"mean, {mean.group} ({mean.sets} of {mean.of})", *(percent(mean.metrics[name]) for name in SHOWN), ""] for mean in means]
    yield Titled(f"{benchmark}", Grid(["set", *SHOWN, "n"], lines, set()), "%")
    reported = published().get(benchmark)
    if reported:
        columns = [*(mean.group for mean in means), *(each.name for each in members)]
        here = [*(mean.metrics["precision@1"] for mean in means), *(found[each.name]["precision@1"] for each in members)]
        rows = [["this run", *map(percent, here)]]
        rows += [[model, *(percent(scores[column]) if column in scores else "" for column in columns)] for model, scores in reported.items()]
        yield Titled(f"{benchmark}, beside published results", Grid(["model", *columns], rows, set()), "precision@1 (hit@1), %")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def at_a_glance(table: Titled) -> TerminalTable:
    """For the terminal: fewer metrics, under short names; the rest is in the files. Many columns are turned round, so that sets stand below each other."""
    cells = without(table.cells, LEFT_OUT)
    if len(cells.columns) > 10:
        turned = list(zip(cells.columns, *cells.rows, strict=True))
        cells = Grid(list(turned[0]), [list(line) for line in turned[1:]], set())
    return TerminalTable(f"{table.title}, {table.caption}", cells._replace(columns=[brief(name) for name in cells.columns]))


def without(cells: Grid, names: Sequence[str]) -> Grid:
    kept = [place for place, name in enumerate(cells.columns) if name not in names]
    best = {(row, kept.index(column)) for row, column in cells.best if column in kept}
    return Grid([cells.columns[place] for place in kept], [[row[place] for place in kept] for row in cells.rows], best)


def brief(name: str) -> str:
    """ "precision@1" -> "P@1"; the names of published models in several lines."""
    return SHORT.get(name) or name.replace(" ", "\n")
