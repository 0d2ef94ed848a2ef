"""Tables, reports and comparisons from ranks that are known."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy.special import stdtrit

from virtue_pl.evaluation.probes.measurements import Measurements
from virtue_pl.evaluation.probes.robustness import Robustness, Tally
from virtue_pl.evaluation.reports.comparison_tables import tables as comparison_tables
from virtue_pl.evaluation.reports.failures import Failures
from virtue_pl.evaluation.reports.html_plots import LENGTH, NAMES, Bar, bars, curves, y_of_share
from virtue_pl.evaluation.reports.html_report import comparison_page, html_report
from virtue_pl.evaluation.reports.left_out import lost_by_mode, single_candidate_notes
from virtue_pl.evaluation.reports.metric_tables import metric_tables, terminal_table
from virtue_pl.evaluation.reports.probe_tables import robustness_tables
from virtue_pl.evaluation.reports.report_files import write_json
from virtue_pl.evaluation.reports.tables import Grid, TerminalTable, markdown, rich_tables, task_tables
from virtue_pl.evaluation.retrieval.predictions import predictions, read_predictions
from virtue_pl.evaluation.statistics.averages import averages
from virtue_pl.evaluation.statistics.compare import compare
from virtue_pl.evaluation.statistics.compared_run import ComparedRun
from virtue_pl.evaluation.statistics.intervals import Estimate
from virtue_pl.evaluation.statistics.metric_summaries import summarise_metrics
from virtue_pl.evaluation.statistics.summary import chance, context, merge, select, standard_errors, summarise
from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.types import (
    EmbeddingInput,
    EncoderBatch,
    ImageBatch,
    PromptBatch,
    RankedSet,
    RankingBatch,
    RankingOutput,
    RankingSample,
    SetDescription,
    VirtueError,
)


def rows(
    mode: str, ranks: list[int], ranking: str = "hit@1", candidates: int = 10, task: str = "test_seen"
) -> list[RankRow]:
    return [RankRow(task, mode, ranking, f"key-{number}", rank, candidates) for number, rank in enumerate(ranks)]


TABLE = RankRows(
    [
        *rows("box", [0, 0, 0, 3]),
        *rows("box", [0, 1, 0, 0], "object", 4),
        *rows("blind", [0, 2, 9, 9]),
        *rows("blind", [1, 1, 1, 1], "object", 4),
    ]
)


def test_a_summary_counts_who_came_first() -> None:
    box = summarise(TABLE)["test_seen"]["box"]
    assert (box["hit@1"], box["object"], box["n"]) == (0.75, 0.75, 4)
    many = summarise(RankRows(rows("box", [0, 0, 0, 3] * 10)))["test_seen"]["box"]
    assert many["standard_error"]["hit@1"] == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_chance_is_the_mean_of_one_over_the_length() -> None:
    mixed = RankRows(
        [
            RankRow("task", "box", "hit@1", "a", 0, 10),
            RankRow("task", "box", "hit@1", "b", 0, 5),
            RankRow("task", "blind", "hit@1", "b", 1, 5),
        ]
    )
    assert chance(mixed) == {"task": {"hit@1": pytest.approx(0.15)}}
    assert chance(TABLE) == {"test_seen": {"hit@1": pytest.approx(0.1), "object": 0.25}}


def test_another_runs_row_joins_under_its_own_name() -> None:
    first, second = summarise(TABLE), summarise(RankRows(rows("box", [1, 1, 1, 0])))
    merged = merge(first, select(second, {"box": "no_segmentation"}))
    assert list(merged["test_seen"]) == ["blind", "box", "no_segmentation"]
    assert merged["test_seen"]["no_segmentation"]["hit@1"] == 0.25
    with pytest.raises(VirtueError, match="two runs have the row 'box' of 'test_seen'"):
        merge(first, second)
    with pytest.raises(VirtueError, match="no mode 'mask', expected one of box"):
        select(second, {"mask": "other"})


def test_markdown_says_what_is_no_better_than_chance() -> None:
    """Modes of one training: nothing is marked, since no difference between models follows."""
    assert markdown(summarise(TABLE), chance(TABLE)).splitlines()[2:9] == [
        "| mode | hit@1 | object | n |",
        "|---|---:|---:|---:|",
        "| box | 75.0±30.7 | 75.0±30.7° | 4 |",
        "| blind | 25.0±30.7° | 0.0±30.7° | 4 |",
        "| chance | 10.0 | 25.0 |  |",
        "",
        "% right ± standard error over queries, each row of one training; °: not above chance",
    ]


CERTAINTIES = {
    "all right": [0] * 300,
    "all wrong": [9] * 300,
    "one query": [0],
    "very many": [0] * 20_000,
    "every image alike": [0, 9] * 40,
}
"""Ranks whose variance is zero, of which two each are of one image."""
NO_DOUBT = re.compile(r"±0\.0\b|±0%|(\d+\.\d)°? \(\1…\1\)")


@pytest.mark.parametrize("ranks", CERTAINTIES.values(), ids=CERTAINTIES)
@pytest.mark.parametrize("with_images", [True, False], ids=["images", "no images"])
def test_no_table_says_that_a_share_is_certain(ranks: list[int], with_images: bool, tmp_path: Path) -> None:
    """In whichever table and file: those of modes, of metrics, of perturbations, of comparisons, and their JSON."""
    about = SetDescription("quiz", "mmeb_mini", "classification")
    table = RankRows(
        RankRow("mmeb_mini/quiz", "box", "hit@1", f"{row}", rank, 10, f"image-{row // 2}" if with_images else "")
        for row, rank in enumerate(ranks)
    )
    found = RetrievalMetrics(["quiz"])
    found.update(0, torch.tensor(ranks))
    metrics, ranked = found.compute(), RankedSet(about, (), torch.zeros(0, dtype=torch.long), ())
    means = averages(metrics, [about])
    tally = Robustness({"quiz": {"box_scale": {1: Tally(len(ranks), ranks.count(0), len(ranks), len(ranks))}}})
    compared = compare([ComparedRun(name, (table,), "box", "a") for name in ("a", "b")])
    tables = [
        *task_tables(summarise(table), chance(table)),
        *metric_tables(metrics, [ranked], means, table),
        *robustness_tables(tally.as_json()),
        *comparison_tables(compared, chance(table)),
    ]
    cells = [cell for found in tables for row in found.cells.rows for cell in row]
    assert len(tables) == 5 and [cell for cell in cells if NO_DOUBT.search(cell)] == []
    assert any("±" in cell for cell in cells) and any("…" in cell for cell in cells)
    console = Console(file=io.StringIO(), width=200)
    for shown in (*rich_tables(summarise(table), chance(table)), *map(terminal_table, tables)):
        console.print(shown)
    shown_as_text = console.file.getvalue()  # type: ignore[attr-defined]
    pages = html_report({"model": "m"}, tables, tables, table, [ranked], [], Failures([], {}), Measurements())
    pages += comparison_page(compared, chance(table))
    assert not any(NO_DOUBT.search(text) for text in (shown_as_text, markdown(summarise(table)), pages))
    errors = [
        error
        for name in ("standard_error", "clustered_standard_error")
        for error in summarise(table)["mmeb_mini/quiz"]["box"].get(name, {}).values()
    ]
    errors += summarise_metrics(table, [about])["quiz"].errors.values()
    assert all(error is None or error > 0 for error in errors)
    estimate = compared.shares["mmeb_mini/quiz"]["a"]["hit@1"]
    assert estimate.low < estimate.high


def test_the_error_of_a_table_is_that_of_the_interval_beside_it() -> None:
    """Return the half width of `compare`'s interval over Student's quantile, or over the normal one at 100 %."""
    for right, images, quantile in (
        (300, False, 1.96),
        (300, True, 1.96),
        (250, False, stdtrit(299, 0.975)),
        (250, True, stdtrit(149, 0.975)),
    ):
        table = RankRows(
            RankRow("t", "box", "hit@1", f"{row}", int(row >= right), 10, f"{row // 2}" if images else "")
            for row in range(300)
        )
        estimate = compare([ComparedRun("a", (table,), "box", "a")]).shares["t"]["a"]["hit@1"]
        error = standard_errors(summarise(table)["t"]["box"])["hit@1"]
        assert estimate.mean - estimate.low == pytest.approx(error * quantile)


def test_tables_say_what_their_rows_leave_out() -> None:
    """In the caption where all rows leave out the same queries, and else beside each row."""
    results, alike = summarise(TABLE), {"missing image": 2}
    assert "; left out: 2 of 6 (2 missing image)\n" in markdown(
        results, lost=lost_by_mode(results, {"test_seen": alike})
    )
    apart = markdown(results, lost={"test_seen": {"box": alike}})
    assert "| n | left out |" in apart and "| 4 | 2 of 6 (2 missing image) |" in apart and "| 4 |  |" in apart
    assert "left out" not in markdown(results, lost={"elsewhere": {"box": alike}})


def test_queries_of_one_image_come_together() -> None:
    """Eight queries of four images, both of an image right or wrong: as sure as four queries, by four thirds."""
    table = RankRows(RankRow("t", "box", "hit@1", f"{row}", int(row < 4), 10, f"image-{row // 2}") for row in range(8))
    found = summarise(table)["t"]["box"]
    assert found["standard_error"]["hit@1"] == pytest.approx((0.25 / 7) ** 0.5)
    assert found["clustered_standard_error"]["hit@1"] == pytest.approx((0.25 / 3) ** 0.5) and found["images"] == 4
    assert "50.0±28.9°" in markdown(summarise(table), {"t": {"hit@1": 0.1}})
    assert "clustered by image" in markdown(summarise(table))
    alone = RankRows(row._replace(image="one") for row in table)
    assert "50.0±?" in markdown(summarise(alone))


def test_metrics_stand_over_their_chance() -> None:
    """Ten candidates: recall@10 is right by construction, and is no result."""
    about = SetDescription("quiz", "mmeb_mini", "classification")
    table = RankRows(
        RankRow("mmeb_mini/quiz", "box", "hit@1", f"quiz/{row}", row % 10, 10, f"image-{row // 2}") for row in range(40)
    )
    found = RetrievalMetrics(["quiz"])
    found.update(0, torch.tensor([row.rank for row in table]))
    ranked = RankedSet(about, (), torch.zeros(0, dtype=torch.long), ())
    metrics = found.compute()
    first, *_ = metric_tables(metrics, [ranked], averages(metrics, [about]), table)
    columns = first.cells.columns
    result, level = first.cells.rows[:2]
    assert level[0] == "chance" and result[-1] == "40"
    assert result[columns.index("precision@1")].startswith("10.0±") and result[1].endswith("°")
    assert level[columns.index("precision@1")] == "10.0" and level[columns.index("recall@5")] == "50.0"
    assert result[columns.index("recall@10")] == level[columns.index("recall@10")] == "-"
    assert level[columns.index("mrr@10")] == f"{10 * sum(1 / (rank + 1) for rank in range(10)):.1f}"


def test_the_terminal_shows_a_table_for_each_task() -> None:
    console = Console(file=io.StringIO(), width=100)
    table = RankRows([*TABLE, *rows("box", [0, 1], task="test_held_out")])
    for task in rich_tables(summarise(table), chance(table)):
        console.print(task)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("test_held_out") < text.index("test_seen")
    assert "75.0±30.7" in text and "chance" in text


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_a_terminal_that_is_narrow_loses_no_figure(width: int) -> None:
    """Columns that do not fit stand in further blocks, each behind the rows' names."""
    cells = Grid(
        ["a set's name", *(f"metric_{number}" for number in range(12))],
        [["SCaR_RefCOCO_plus", *(f"{number}.25" for number in range(12))]],
        set(),
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(TerminalTable("title " * 20, cells))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    rows = [line.split() for line in lines if line.startswith("SCaR_RefCOCO_plus")]
    assert [figure for row in rows for figure in row[1:]] == cells.rows[0][1:] and (len(rows) == 1) == (width == 200)


def test_a_report_survives_the_disk(tmp_path: Path) -> None:
    report: dict[str, Any] = {
        "results": summarise(TABLE),
        "chance": chance(TABLE),
        "context": context({"model": {"dim": 8}}, seed=7, data_fingerprint="abc"),
    }
    path = write_json(tmp_path / "deep" / "report.json", report)
    assert json.loads(path.read_text()) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    assert {"python", "virtue-pl", "torch", "lightning", "webdataset"} <= set(report["context"]["versions"])
    with pytest.raises(VirtueError, match="no number"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == report


def batch_of(samples: tuple[RankingSample, ...], modes: tuple[str, ...]) -> RankingBatch:
    nothing = torch.zeros(0, dtype=torch.long)
    empty = EncoderBatch(
        torch.zeros(0, 0, dtype=torch.long),
        torch.zeros(0, 0, dtype=torch.long),
        ImageBatch(),
        PromptBatch((), nothing),
        nothing,
    )
    return RankingBatch(samples, modes, empty, empty, tuple(tuple(range(len(sample.candidates))) for sample in samples))


def test_predictions_give_their_ranks_back(tmp_path: Path) -> None:
    captions = tuple(EmbeddingInput(f"caption {number}") for number in range(3))
    samples = (
        RankingSample("a", "seen", EmbeddingInput(), captions, {"hit@1": (1, 0, 2), "object": (1, 2)}),
        RankingSample("b", "seen", EmbeddingInput(), captions[:2], {"hit@1": (0, 1)}),
    )
    scores = (
        torch.tensor([0.5, 0.5, 0.1]),
        torch.tensor([0.2, 0.1]),
        torch.tensor([0.1, 0.2, 0.3]),
        torch.tensor([0.1, 0.2]),
    )
    lines = list(predictions(batch_of(samples, ("box", "blind")), RankingOutput(scores)))
    assert lines[0] == {
        "task": "seen",
        "key": "a",
        "mode": "box",
        "image": "",
        "content": lines[2]["content"],
        "gold": 1,
        "ranking": [0, 1, 2],
        "scores": [0.5, 0.5, 0.1],
        "ranks": {"hit@1": [1, 3], "object": [0, 2]},
    }
    assert lines[0]["content"] != lines[1]["content"]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_predictions(file)
    assert read.ranks("seen", "box", "hit@1") == {"a": 1, "b": 0}
    assert read.ranks("seen", "blind", "hit@1") == {"a": 1, "b": 1}
    assert next(iter(read)).candidates == 3


def test_plots_of_a_page_show_chance_and_intervals() -> None:
    """A dotted line across each bar, at its own level, and a dashed one through each task's curves."""
    rows = [Bar("a<b", Estimate(0.6, 0.5, 0.7, 100, 1), 0.1), Bar("b", Estimate(1, 0.99, 1, 100, 1), 0.25)]
    drawn = bars("title & all", rows)
    assert drawn.count('class="chance"') == 2 and drawn.count("chance (dotted)") == 1
    assert f'x1="{NAMES + 0.1 * LENGTH:.1f}"' in drawn and f'x1="{NAMES + 0.25 * LENGTH:.1f}"' in drawn
    assert "a&lt;b: 60.0 % (50.0…70.0)" in drawn and "title &amp; all" in drawn and "a<b" not in drawn
    assert "chance" not in bars("unknown", [row._replace(chance=None) for row in rows])
    found = Robustness({"quiz": {"box_scale": {level: Tally(4, 2, 4, 4, chance=0.4) for level in (1, 2)}}})
    curve = "".join(curves(found.as_json()))
    assert curve.count('class="chance"') == 1 and f'y1="{y_of_share(10):.1f}"' in curve


def test_queries_of_a_single_candidate_are_counted() -> None:
    def ranked(name: str, *candidates: int) -> Any:
        rows = [SimpleNamespace(candidates=("text",) * count) for count in candidates]
        return SimpleNamespace(about=SimpleNamespace(name=name), rows=rows)

    notes = single_candidate_notes([ranked("mixed", 1, 3, 1), ranked("sound", 2, 2), ranked("alone", 1)])
    assert [note.partition(" have ")[0] for note in notes] == ["2 of 3 queries of mixed", "1 of 1 queries of alone"]
    assert all("hit@1 of 1 measures nothing" in note for note in notes)
