"""Tables that say which queries were not ranked, beside every mean that they are missing from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from virtue_pl.evaluation.reports.tables import LEFT_OUT, Grid, Lost, TitledTable, describe_share
from virtue_pl.evaluation.statistics.averages import ALL, Average
from virtue_pl.evaluation.statistics.compared_run import LeftOut
from virtue_pl.evaluation.statistics.summary import Results
from virtue_pl.types import RankedSet, SetDescription

PUBLISHED_QUERIES = {
    "SCaR_RefCOCOg": 1_539,
    "SCaR_RefCOCO_plus": 2_764,
    "SCaR_COCO_Stuff": 17_903,
    "SCaR_VisualGenome": 15_571,
    "SCaR_ADE20K": 9_368,
}
"""Queries of each of SCaR's sets, by the paper's table."""
MMEB_QUERIES = 1_000
"""Queries of each set of MMEB."""


def lost_by_mode(results: Results, left_out: LeftOut) -> Lost:
    """Return what every mode of each task leaves out: all the same queries. left_out: by task, or by its set's name."""
    found = {task: left_out.get(task, left_out.get(task.rpartition("/")[2], {})) for task in results}
    return {task: dict.fromkeys(modes, found[task]) for task, modes in results.items() if found[task]}


def name_left_out(
    tables: Sequence[TitledTable], sets: Sequence[RankedSet], left_out: LeftOut, means: Sequence[Average]
) -> list[TitledTable]:
    """Return the tables of `metric_tables` with a column of what was left out, where anything was.

    The caption of a table beside published results names every set that was not ranked as a whole.
    """
    return [
        table._replace(caption="; ".join([table.caption, *gaps(benchmark, sets, left_out, means)]))
        if "published" in table.title
        else table._replace(cells=with_column(table.cells, sets, left_out, means, benchmark))
        for table in tables
        for benchmark in [table.title.partition(",")[0]]
    ]


def with_column(
    cells: Grid, sets: Sequence[RankedSet], left_out: LeftOut, means: Sequence[Average], benchmark: str
) -> Grid:
    """Return the cells with a column of the queries left out of each set and mean; as they are where there are none."""
    members = [ranked for ranked in sets if ranked.about.benchmark == benchmark]
    lost = {ranked.about.name: left_out.get(ranked.about.name, {}) for ranked in members}
    if not any(lost.values()):
        return cells
    total = {ranked.about.name: len(ranked.rows) + sum(lost[ranked.about.name].values()) for ranked in members}
    labels = {name: describe_share(counts, total[name]) for name, counts in lost.items()}
    for mean in means:
        if mean.benchmark == benchmark:
            chosen = [ranked.about.name for ranked in members if is_in(ranked.about, mean.group)]
            counts = sum((Counter(lost[name]) for name in chosen), Counter[str]())
            labels[f"mean, {mean.group}"] = describe_share(counts, sum(total[name] for name in chosen))
    rows = [[*row, labels.get(row[0], labels.get(row[0].partition(" (")[0], ""))] for row in cells.rows]
    return Grid([*cells.columns, LEFT_OUT], rows, cells.best)


def is_in(about: SetDescription, group: str) -> bool:
    """Return whether a set is in a group of its benchmark."""
    return group in (ALL, about.meta_task, about.distribution)


def gaps(benchmark: str, sets: Sequence[RankedSet], left_out: LeftOut, means: Sequence[Average]) -> list[str]:
    """Return what this run lacks of a benchmark beside published results, in words; nothing where it lacks nothing."""
    short = [
        f"{mean.group} is over {mean.sets} of {mean.of} sets"
        for mean in means
        if mean.benchmark == benchmark and mean.sets < mean.of
    ]
    found = [gap for ranked in sets if ranked.about.benchmark == benchmark for gap in set_gaps(ranked, left_out)]
    return [f"this run's {', '.join(short)}"] * bool(short) + found


def set_gaps(ranked: RankedSet, left_out: LeftOut) -> list[str]:
    """Return what was not ranked of a set, in words, and by how much its file differs from the published one."""
    name, lost = ranked.about.name, left_out.get(ranked.about.name, {})
    total = len(ranked.rows) + sum(lost.values())
    published = MMEB_QUERIES if ranked.about.benchmark == "mmeb" else PUBLISHED_QUERIES.get(name, total)
    found = [f"left out of {name}: {describe_share(lost, total)}"] if lost else []
    return found + ([f"{name} has {total:,} queries here, {published:,} as published"] if total != published else [])


def single_candidate_notes(sets: Sequence[RankedSet]) -> list[str]:
    """Return a sentence for each set with queries of a single candidate, which is the first whatever is embedded."""
    counts = {ranked.about.name: sum(len(row.candidates) == 1 for row in ranked.rows) for ranked in sets}
    return [
        f"{counts[name]:,} of {len(ranked.rows):,} queries of {name} have a single candidate, which is ranked first"
        " whatever is embedded: its hit@1 of 1 measures nothing"
        for ranked in sets
        if counts[name := ranked.about.name]
    ]


def left_out_notes(left_out: LeftOut, ranked: Mapping[str, int]) -> list[str]:
    """Return a sentence for each set with queries that were not ranked. ranked: number of those that were, by set."""
    return [
        f"left out of {name}: {describe_share(counts, ranked.get(name, 0) + sum(counts.values()))}"
        for name, counts in left_out.items()
        if counts
    ]
