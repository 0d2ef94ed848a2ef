from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from virtue_pl.evaluation.reports.comparison_tables import markdown_comparison, rich_comparison
from virtue_pl.evaluation.statistics.compare import ComparedRun, compare, mean_shares, read_chance, read_run
from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.types import VirtueError


def training(right: int, mode: str = "box", task: str = "scar/seen") -> RankRows:
    """200 queries, the first `right` of which are right; of the objects, all are."""
    return RankRows(
        RankRow(task, mode, ranking, f"key-{number}", int(ranking == "hit@1" and number >= right), 10)
        for number in range(200)
        for ranking in ("hit@1", "object")
    )


RUNS = [
    ComparedRun("virtue", (training(100), training(120)), "box", "virtue"),
    ComparedRun("plain", (training(60),), "box", "virtue"),
    ComparedRun("elsewhere", (training(10, task="mmeb/cars"),), "box", "elsewhere"),
]


def test_shares_differences_and_kinds() -> None:
    found = compare(RUNS)
    assert found.shares["scar/seen"]["virtue"]["hit@1"].mean == pytest.approx(0.55)
    plain = found.differences["scar/seen"]["plain"]
    assert plain["hit@1"].mean == pytest.approx(-0.25) and plain["hit@1"].high < 0
    assert plain["object"][:3] == (0, 0, 0)
    assert found.shares["mmeb/cars"].keys() == {"elsewhere"} and "mmeb/cars" not in found.differences
    assert json.loads(json.dumps(found.as_json()))["differences"]["scar/seen"]["plain"]["hit@1"]["seeds"] == 1


def test_modes_of_the_same_trainings_are_told_apart_where_trainings_are_not_alike() -> None:
    """Half the queries against nine tenths, and one query in twenty fewer in the other mode."""
    both = tuple(RankRows([*training(right), *training(right - 10, mode="point")]) for right in (100, 180))
    again = tuple(RankRows(list(rows)) for rows in both)
    virtue, point = (ComparedRun(mode, both, mode, "box") for mode in ("box", "point"))
    other = ComparedRun("other", again, "point", "box")
    found = compare([virtue, point, other]).differences["scar/seen"]
    assert found["point"]["hit@1"].mean == found["other"]["hit@1"].mean == pytest.approx(-0.05)
    assert found["point"]["hit@1"].differs and not found["other"]["hit@1"].differs


def test_a_mean_is_over_tasks_and_of_runs_that_have_them_all() -> None:
    both = ComparedRun(
        "both", (RankRows([*training(50, task="mmeb/a"), *training(100, task="mmeb/b")]),), "box", "both"
    )
    shares = compare([both, ComparedRun("one", (training(10, task="mmeb/a"),), "box", "one")]).shares
    assert mean_shares(shares, "mmeb/") == {"both": pytest.approx(0.375)}
    assert mean_shares(shares, "scar/") == {}


def test_a_run_is_compared_only_where_both_were_tested() -> None:
    found = compare([*RUNS, ComparedRun("other", (training(10, task="mmeb/cars"),), "box", "virtue")])
    assert "other" in found.shares["mmeb/cars"] and "mmeb/cars" not in found.differences


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(VirtueError, match="plain is to be compared to 'virtue', expected one of plain"):
        compare(RUNS[1:2])
    with pytest.raises(VirtueError, match="virtue: nothing was ranked in mode 'mask', expected one of box"):
        compare([ComparedRun("virtue", (training(1),), "mask", "virtue")])


def test_tables_mark_the_best_and_what_differs() -> None:
    text = markdown_comparison(compare(RUNS[:2]), {"scar/seen": {"hit@1": 0.1, "object": 0.25}}).splitlines()
    assert text[2] == "| run | hit@1 | object | n | seeds |"
    assert text[4].startswith("| virtue | **55.0 (") and text[4].endswith("| **100.0 (100.0…100.0)** | 200 | 2 |")
    assert text[6] == "| chance | 10.0 | 25.0 |  |  |"
    assert text[10] == "### scar/seen, differences"
    assert text[14].startswith("| plain | **-25.0 (") and text[14].endswith(" | +0.0 (+0.0…+0.0) |")
    assert "points more than virtue" in text[16]


def test_differences_to_several_runs_name_the_run() -> None:
    runs = [*RUNS[:2], ComparedRun("third", (training(50),), "box", "plain")]
    assert "| run | hit@1 | object | against |" in markdown_comparison(compare(runs))


def test_all_tasks_stand_in_one_table_with_the_mean_of_each_benchmark() -> None:
    both = ComparedRun(
        "both", (RankRows([*training(50, task="mmeb/a"), *training(100, task="mmeb/b"), *training(20)]),), "box", "both"
    )
    found = compare([both, ComparedRun("one", (training(100, task="mmeb/a"),), "box", "one")])
    assert found.means.keys() == {"mmeb"} and found.means["mmeb"].keys() == {"both"}
    assert json.loads(json.dumps(found.as_json()))["means"]["mmeb"]["both"]["mean"] == pytest.approx(0.375)
    title, _, header, _, first, second, *_ = markdown_comparison(found).splitlines()
    assert title == "### All tasks" and header == "| run | a | b | mean mmeb | seen |"
    assert (
        first.startswith("| both | 25.0 (")
        and "| **37.5 (" in first
        and second.startswith("| one | **50.0 (")
        and second.endswith("|  |  |  |")
    )


def test_runs_stand_in_the_order_they_were_given() -> None:
    """Whichever tasks each of them has, and whichever task comes first."""
    runs = [
        ComparedRun(name, (training(50, task=task),), "box", name)
        for name, task in (("z", "scar/b"), ("m", "scar/c"), ("a", "scar/a"), ("b", "scar/b"))
    ]
    lines = markdown_comparison(compare(runs)).splitlines()
    assert lines[0] == "### All tasks" and [line.split(" | ")[0] for line in lines[4:8]] == ["| z", "| m", "| a", "| b"]


def test_a_task_ranked_in_another_mode_alone_counts_where_that_is_wanted() -> None:
    """Queries with a region are asked with a box, those without by their image."""
    rows = RankRows([*training(50), *training(80, "set_blind"), *training(100, "no_prompt", "mmeb/a")])
    assert compare([ComparedRun("run", (rows,), "box", "run")]).shares.keys() == {"scar/seen"}
    assert (
        compare([ComparedRun("run", (rows,), "box", "run", use_only_mode=True)]).shares["mmeb/a"]["run"]["hit@1"].mean
        == 0.5
    )
    unclear = RankRows([*rows, *training(10, "blind", "mmeb/a")])
    assert compare([ComparedRun("run", (unclear,), "box", "run", use_only_mode=True)]).shares.keys() == {"scar/seen"}


def test_the_terminal_shows_intervals_below_the_figures() -> None:
    console = Console(file=io.StringIO(), width=80)
    for table in rich_comparison(compare(RUNS[:2])):
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    row = next(number for number, line in enumerate(lines) if line.startswith("virtue"))
    assert "55.0" in lines[row] and "…" in lines[row + 1] and "(" not in lines[row + 1]


def test_seeds_in_folders_are_one_run(tmp_path: Path) -> None:
    line = {"task": "t", "key": "a", "mode": "box", "ranks": {"hit@1": [0, 10]}}
    for seed in (0, 1):
        folder = tmp_path / "run" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "report.json").write_text(json.dumps({"chance": {"t": {"hit@1": 0.1}}}))
    assert [len(training) for training in read_run(tmp_path / "run")] == [1, 1]
    assert len(read_run(tmp_path / "run" / "seed_0")) == 1
    assert read_chance([tmp_path / "run"]) == {"t": {"hit@1": 0.1}}
    with pytest.raises(VirtueError, match=r"holds no predictions\.jsonl"):
        read_run(tmp_path)
