"""Files that an evaluation writes into one folder: predictions.jsonl, report.json, report.md and report.html."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from virtue_pl.evaluation.probes.measurements import Measurements
from virtue_pl.evaluation.reports.failures import failures_of
from virtue_pl.evaluation.reports.html_report import html_report
from virtue_pl.evaluation.reports.left_out import left_out_notes, lost_by_mode, name_left_out
from virtue_pl.evaluation.reports.metric_tables import metric_tables, terminal_table
from virtue_pl.evaluation.reports.probe_tables import measurement_tables
from virtue_pl.evaluation.reports.report_files import write_json, write_text
from virtue_pl.evaluation.reports.tables import markdown, markdown_table, task_tables
from virtue_pl.evaluation.statistics.averages import Average, averages, averages_as_json, published_results
from virtue_pl.evaluation.statistics.metric_summaries import summaries_as_json, summarise_metrics
from virtue_pl.evaluation.statistics.summary import chance, context, summarise
from virtue_pl.metrics.ranking import RankRows

Write = Callable[[Iterable[Mapping[str, Any]]], None]


class EvaluationReport:
    """Report of an evaluation: the files of a folder, each written whole or not at all.

    Args:
        folder: folder of the files.

    Example:
        >>> report = EvaluationReport(Path("runs/eval"))
        >>> with report.lines(rank=0) as write:
        ...     write([{"set": "ADE20K", "row": 0}])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    @contextmanager
    def lines(self, rank: int) -> Iterator[Write]:
        """Open this process's part of predictions.jsonl, and yield a function that writes lines into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.part(rank).open("w", encoding="utf-8") as file:
            yield lambda lines: file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def part(self, rank: int) -> Path:
        """Return the path of a process's part of predictions.jsonl."""
        return self.folder / f".predictions.{rank}.part"

    def write(
        self,
        found: Mapping[str, Mapping[str, float]],
        ranks: RankRows,
        plan: Any,
        library: Any,
        settings: Mapping[str, Any],
        encoded: int,
        world_size: int,
        measured: Measurements,
    ) -> None:
        """Write the report of the results of all processes.

        found: metrics by set. encoded: number of inputs embedded in this run. world_size: number of processes.
        """
        self.join([len(ranked.rows) for ranked in plan.sets], world_size)
        about = [ranked.about for ranked in plan.sets]
        means = averages(found, about)
        ranks = ranks.with_images(
            {
                (f"{ranked.about.benchmark}/{ranked.about.name}", row.key): row.image or ""
                for ranked in plan.sets
                for row in ranked.rows
            }
        )
        embedded = {
            "unique": len(plan.keys),
            "total": plan.total,
            "unique_pictures": plan.images,
            "total_pictures": plan.total_images,
            "encoded": encoded,
        }
        results, chance_levels = summarise(ranks), chance(ranks)
        report = {
            "settings": dict(settings),
            "sets": {ranked.about.name: {**ranked.about._asdict(), **found[ranked.about.name]} for ranked in plan.sets},
            "averages": averages_as_json(means),
            "metric_summaries": summaries_as_json(summarise_metrics(ranks, about)),
            "published": {
                benchmark: published_results()[benchmark]
                for benchmark in averages_as_json(means)
                if benchmark in published_results()
            },
            "missing": dict(plan.missing),
            "left_out": {name: dict(counts) for name, counts in plan.left_out.items()},
            "results": results,
            "chance": chance_levels,
            "embeddings": embedded,
            **measured.as_json(),
            "seconds": {
                "wall": round(time.perf_counter() - self.started, 2),
                "cpu": round(time.process_time() - self.cpu_started, 2),
            },
            "context": context(data_fingerprint=plan.fingerprint()),
        }
        write_json(self.folder / "report.json", report)
        ranked = {each.about.name: len(each.rows) for each in plan.sets}
        notes = self.notes(plan.missing, means, embedded, settings) + left_out_notes(plan.left_out, ranked)
        tables = name_left_out(metric_tables(found, plan.sets, means, ranks), plan.sets, plan.left_out, means)
        further = [markdown_table(*table) for table in measurement_tables(measured)]
        lost = lost_by_mode(results, plan.left_out)
        text = [
            *(markdown_table(*table) for table in tables),
            markdown(results, chance_levels, lost),
            *further,
            *(f"- {note}" for note in notes),
            "",
        ]
        write_text(self.folder / "report.md", "\n".join(text))
        with (self.folder / "predictions.jsonl").open(encoding="utf-8") as lines:
            failures = failures_of(map(json.loads, lines), plan.sets, library)
        write_text(
            self.folder / "report.html",
            html_report(
                settings,
                [*tables],
                task_tables(results, chance_levels, lost),
                ranks,
                plan.sets,
                notes,
                failures,
                measured,
            ),
        )
        self.print_tables([*tables, *measurement_tables(measured)], notes)

    def join(self, lengths: Sequence[int], world_size: int) -> None:
        """Join all processes' parts into one file, line by line in the order in which rows were distributed.

        lengths: number of rows of each set.
        """
        with replace_whole(self.folder / "predictions.jsonl") as whole, ExitStack() as files:
            parts = [files.enter_context(self.part(rank).open("rb")) for rank in range(world_size)]
            file = files.enter_context(whole.open("wb"))
            for length in lengths:
                file.writelines(next(parts[row % world_size]) for row in range(length))
        for rank in range(world_size):
            self.part(rank).unlink()

    def notes(
        self,
        missing: Mapping[str, str],
        means: Sequence[Average],
        embedded: Mapping[str, int],
        settings: Mapping[str, Any],
    ) -> list[str]:
        """Return remarks on the tables, in sentences."""
        share = (
            f"{embedded['unique']} unique of {embedded['total']} inputs, {embedded['unique_pictures']} unique of"
            f" {embedded['total_pictures']} images"
        )
        notes = [
            f"{share}; {embedded['encoded']} embedded in this run, {embedded['unique'] - embedded['encoded']} stored or"
            " not needed"
        ]
        reasons = {reason: [name for name, why in missing.items() if why == reason] for reason in missing.values()}
        notes += [
            f"left out of all averages, because files are missing: {', '.join(names)} ({reason})"
            for reason, names in reasons.items()
        ]
        short = [
            f"{each.benchmark} {each.group}: {each.sets} of {each.of} sets" for each in means if each.sets < each.of
        ]
        notes += [f"averages over fewer sets than published, not to be compared: {'; '.join(short)}"] if short else []
        return [
            *notes,
            "settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
        ]

    def print_tables(self, tables: Sequence[Any], notes: Sequence[str]) -> None:
        """Print tables and notes on the terminal."""
        console = Console()
        for table in tables:
            console.print(terminal_table(table))
        for note in [*notes, f"report: {self.folder / 'report.html'}"]:
            console.print(note, soft_wrap=True, highlight=False, markup=False)
