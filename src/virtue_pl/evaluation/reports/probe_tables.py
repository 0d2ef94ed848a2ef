"""Tables of the probes' measurements: cost, robustness, prompt consistency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from virtue_pl.evaluation.probes.measurements import Measurements
from virtue_pl.evaluation.probes.prompt_consistency import PromptConsistency
from virtue_pl.evaluation.reports.tables import NOT_ABOVE, Grid, TitledTable, figure

ROBUSTNESS_CAPTION = (
    f"± standard error over queries, taken as independent, of one training; {NOT_ABOVE}: not above chance; same first:"
    " the first caption is that of the"
    " unperturbed prompt; cosine: of the two embeddings"
)
CONSISTENCY_CAPTION = "instead of the box; nearer: to the box of the same region than any other region of the image"


def measurement_tables(measured: Measurements) -> list[TitledTable]:
    """Return a table of the cost and one of each task's robustness, where they were measured."""
    cost = [cost_table(measured.cost)] if measured.cost else []
    return [*cost, *robustness_tables(measured.robustness or {})]


def cost_table(cost: Mapping[str, Any]) -> TitledTable:
    """Return the cost as a table for a report."""
    lines = [[mode, *cost_cells(row)] for mode, row in cost["modes"].items()]
    width, height = cost["image"]
    machine = (
        f"{cost['device']}, {count_phrase(cost['threads'], 'thread')}" if cost["device"] == "cpu" else cost["device"]
    )
    caption = (
        f"{machine}, {cost['dtype']}, images of {width}x{height}, {cost['rows']} queries at once, median of"
        f" {cost['repeats']}"
    )
    return TitledTable(
        "Cost",
        Grid(["query", "first prompt, ms", "next prompt, ms", "queries a second", "peak memory, MiB"], lines, set()),
        caption,
    )


def cost_cells(row: Mapping[str, float | int | None]) -> list[str]:
    """Return a mode's cells; empty where it was not measured."""
    first, following, speed, memory = (
        row[name] for name in ("first_s", "next_s", "rows_per_second", "peak_memory_bytes")
    )
    scaled = [(first, 1000, ".1f"), (following, 1000, ".1f"), (speed, 1, ".2f"), (memory, 2**-20, ".0f")]
    return ["" if value is None else format(value * scale, digits) for value, scale, digits in scaled]


def count_phrase(number: int, name: str) -> str:
    """Return a number with its noun: "1 thread", "2 threads"."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def robustness_tables(tasks: Mapping[str, Any]) -> list[TitledTable]:
    """Return one table for each task, with a row for each kind and level. tasks: the result of `Robustness.as_json`."""
    columns = ["kind", "level", "hit@1, %", "same first, %", "cosine", "n"]
    return [
        TitledTable(f"{task}, imprecise prompts", Grid(columns, [*robustness_lines(kinds)], set()), ROBUSTNESS_CAPTION)
        for task, kinds in tasks.items()
    ]


def robustness_lines(kinds: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a task's rows of cells."""
    for kind, about in kinds.items():
        for number, row in enumerate(about["levels"]):
            right = figure(row["hit@1"], row["standard_error"], row["chance"])
            yield [
                "" if number else kind,
                f"{row['level']:g}",
                right,
                f"{100 * row['same_first']:.1f}",
                f"{row['cosine']:.3f}",
                str(row["n"]),
            ]


def prompt_consistency_tables(found: PromptConsistency) -> list[TitledTable]:
    """Return one table for each task, with a row for each variant."""
    columns = ["instead", "nearer, %", "cosine", "of the nearest other", "n"]
    return [
        TitledTable(
            f"{task}, other prompts of a region",
            Grid(columns, [*consistency_lines(variants)], set()),
            CONSISTENCY_CAPTION,
        )
        for task, variants in found.as_json().items()
    ]


def consistency_lines(variants: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    """Yield a task's rows of cells."""
    for variant, row in variants.items():
        shares = [f"{100 * row['nearer']:.1f}", f"{row['same']:.3f}", f"{row['other']:.3f}"]
        yield [variant.replace("_", " "), *shares, str(row["n"])]
