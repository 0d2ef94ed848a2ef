"""`RankingReport`: a test's table in the terminal, and report.json, report.md and predictions.jsonl on disk."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from rich.console import Console

from virtue_pl.evaluation.reports.left_out import left_out_notes, lost_by_mode
from virtue_pl.evaluation.reports.report_files import write_json, write_text
from virtue_pl.evaluation.reports.tables import markdown, rich_tables
from virtue_pl.evaluation.retrieval.predictions import predictions
from virtue_pl.evaluation.statistics.summary import Results, chance, context, summarise
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import RankRows
from virtue_pl.types import RankingBatch, RankingOutput


@runtime_checkable
class Fingerprinted(Protocol):
    """A DataModule with a checksum of the data that it streams.

    Example:
        >>> class Data:
        ...     def fingerprint(self):
        ...         return "c0ffee"
        >>> isinstance(Data(), Fingerprinted)
        True
    """

    def fingerprint(self) -> str:
        """Return the checksum, in hexadecimal digits."""
        ...


@runtime_checkable
class CountsQueries(Protocol):
    """A DataModule that knows how many queries a test ranks, and how many it does not.

    Example:
        >>> class Data:
        ...     def num_queries(self):
        ...         return {"scar_mini/seen": 400}
        ...     def left_out(self):
        ...         return {"scar_mini/seen": {"missing image": 2}}
        >>> isinstance(Data(), CountsQueries)
        True
    """

    def num_queries(self) -> dict[str, int]:
        """Return the number of queries that are to be ranked, by task."""
        ...

    def left_out(self) -> dict[str, dict[str, int]]:
        """Return the number of queries that the data does not give, by task and reason."""
        ...


class RankingReport(Callback):
    """Callback that prints and writes a test's results.

    The table comes from the module's `rank_table` (a `RankTable` that its `test_step` fills), emptied before and read
    after the test; the predictions from the `RankingOutput` that `test_step` returns for a `RankingBatch`. A module
    without a rank table, such as a part that is tested alone, leaves its logged metrics in the same files, and no
    predictions.
    `report.json` holds `results`, `chance`, `left_out`, `metrics`, `seconds` and `context`; queries that were not
    ranked are named below the tables, too.

    Args:
        out: the folder to write into; by default the run's own log folder.

    Example:
        >>> trainer = Trainer(callbacks=[RankingReport("runs/mini/report")])  # doctest: +SKIP
        >>> trainer.test(model, datamodule=data)
    """

    def __init__(self, out: str | None = None) -> None:
        self.out = out
        self._folder = Path()
        self._rows = RankRows([])
        self._started = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        table = rank_table(pl_module)
        if table is not None:
            table.reset()
        self._rows = RankRows([])
        self._folder = Path(self.out or trainer.log_dir or trainer.default_root_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text("")
        self._started = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(batch, RankingBatch) and isinstance(outputs, RankingOutput):
            with self._part(trainer.global_rank).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions(batch, outputs))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        table = rank_table(pl_module)
        if table is not None:
            self._rows = table.compute()
        trainer.strategy.barrier("predictions")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        lines = self._join_predictions(trainer.world_size)
        images = {(line["task"], line["key"]): line["image"] for line in lines}
        results, chance_levels = summarise(self._rows.with_images(images)), chance(self._rows)
        lost = left_out(trainer, results)
        notes, of_rows = left_out_notes(lost, ranked_queries(results)), lost_by_mode(results, lost)
        metrics = {name: finite(value.item()) for name, value in sorted(trainer.callback_metrics.items())}
        report = {
            "results": results,
            "chance": chance_levels,
            "left_out": lost,
            "metrics": metrics,
            "seconds": {"test": round(time.perf_counter() - self._started, 2)},
            "context": run_context(trainer),
        }
        write_json(self._folder / "report.json", report)
        write_text(
            self._folder / "report.md",
            "\n".join(
                [
                    markdown(results, chance_levels, of_rows),
                    *(f"- {note}" for note in notes),
                    *(f"- {name}: {value}" for name, value in metrics.items()),
                    "",
                ]
            ),
        )
        console = Console()
        for table in rich_tables(results, chance_levels, of_rows):
            console.print(table)
        for note in [*notes, f"report: {self._folder / 'report.json'}"]:
            console.print(note, soft_wrap=True, highlight=False, markup=False)

    def _part(self, rank: int) -> Path:
        return self._folder / f".predictions.{rank}.part"

    def _join_predictions(self, world_size: int) -> list[dict[str, Any]]:
        """Write all processes' predictions to one file, sorted, each query once; no file if nothing was ranked.

        Returns the lines.
        """
        parts = [self._part(rank) for rank in range(world_size)]
        lines = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
        found = {(line["task"], line["key"], line["mode"]): line for line in lines}
        if found:
            write_text(
                self._folder / "predictions.jsonl",
                "".join(json.dumps(found[name], ensure_ascii=False) + "\n" for name in sorted(found)),
            )
        for part in parts:
            part.unlink()
        return list(found.values())


def ranked_queries(results: Results) -> dict[str, int]:
    """Return the number of queries that were ranked, by task."""
    return {task: min(row["n"] for row in modes.values()) for task, modes in results.items()}


def left_out(trainer: Trainer, results: Results) -> dict[str, dict[str, int]]:
    """Return the number of queries that were not ranked, by task and reason: the data's own, and bad samples.

    A test that stopped after `limit_test_batches` leaves out the rest.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, CountsQueries):
        return {}
    found, expected = data.left_out(), data.num_queries()
    limit = trainer.limit_test_batches
    whole = limit is None or (isinstance(limit, float) and limit == 1)
    for task, ranked in ranked_queries(results).items():
        lost = expected.get(task, ranked) - ranked
        if lost > 0:
            found[task] = {**found.get(task, {}), "bad sample" if whole else "beyond limit_test_batches": lost}
    return {task: found[task] for task in results if task in found}


def rank_table(pl_module: LightningModule) -> RankTable | None:
    """Return the module's table of ranks; None for a module that does not rank."""
    table = getattr(pl_module, "rank_table", None)
    return table if isinstance(table, RankTable) else None


def finite(value: float) -> float | None:
    """Return `value`, or None for infinities and not a number, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def run_context(trainer: Trainer) -> dict[str, Any]:
    """Return the report's `context`: the run's settings, if the command line made it, its seed, its data's checksum."""
    config = resolved_config(trainer)
    seed = os.environ.get("PL_GLOBAL_SEED")
    data = trainer.datamodule  # type: ignore[attr-defined]
    return context(
        config, int(seed) if seed is not None else None, data.fingerprint() if isinstance(data, Fingerprinted) else None
    )


def resolved_config(trainer: Trainer) -> Mapping[str, Any] | None:
    """Return the run's settings as LightningCLI parsed them; None for a trainer that Python built."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            return yaml.safe_load(callback.parser.dump(callback.config, skip_unset=False))
    return None
