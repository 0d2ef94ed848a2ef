from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from virtue_pl.evaluation.reports.comparison_tables import markdown_comparison, rich_comparison
from virtue_pl.evaluation.statistics.compare import (
    compare,
    data_fingerprints,
    mean_shares,
    read_chance,
    read_left_out,
    read_run,
)
from virtue_pl.evaluation.statistics.compared_run import ComparedRun
from virtue_pl.metrics.ranking import RankRow, RankRows
from virtue_pl.types import VirtueError


def training(
    right: int, mode: str = "box", task: str = "scar/seen", queries: int = 200, candidates: int = 10, content: str = ""
) -> RankRows:
    """The first `right` queries are right, two of an image; of the objects, all are."""
    return RankRows(
        RankRow(
            task,
            mode,
            ranking,
            f"key-{number:03}",
            int(ranking == "hit@1" and number >= right),
            candidates,
            f"image-{number // 2}",
            content,
        )
        for number in range(queries)
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
    assert plain["hit@1"].mean == pytest.approx(-0.25)
    assert plain["object"].mean == 0 and plain["object"].low < 0 < plain["object"].high
    assert plain["hit@1"].borrowed and plain["hit@1"].images == 100
    assert not plain["hit@1"].differs, "one training against two that are ten points apart"
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


def test_tables_mark_what_is_told_apart() -> None:
    several = [
        ComparedRun("virtue", tuple(map(training, (100, 104, 102))), "box", "virtue"),
        ComparedRun("plain", tuple(map(training, (60, 62, 58))), "box", "virtue"),
    ]
    text = markdown_comparison(compare(several), {"scar/seen": {"hit@1": 0.1, "object": 0.25}}).splitlines()
    assert text[2] == "| run | hit@1 | object | n | seeds |"
    assert text[4].startswith("| virtue | **51.0 (") and text[4].endswith(" | 100.0 (96.4…100.0) | 200 | 3 |")
    assert text[6] == "| chance | 10.0 | 25.0 |  |  |"
    assert "over trainings and queries, clustered by image" in text[8] and "°: not above chance" in text[8]
    assert text[10] == "### scar/seen, differences"
    assert text[14].startswith("| plain | **-21.0 (") and text[14].endswith(" | trainings and queries |")
    assert "| +0.0 (-3.6…+3.6) |" in text[14]
    assert "points more than virtue" in text[16] and "of these 2, about 0.1 would be between equals" in text[16]


def test_single_trainings_are_not_told_apart() -> None:
    """Whatever their difference: the interval is there, and says what it is over."""
    runs = [ComparedRun(name, (training(right),), "box", "a") for name, right in (("a", 150), ("b", 30))]
    found = compare(runs)
    text = markdown_comparison(found)
    assert found.differences["scar/seen"]["b"]["hit@1"].high < 0 and not found.best
    assert "**" not in text and "says nothing of their variants" in text and "| queries |" in text


def test_baselines_are_never_the_best() -> None:
    rows = tuple(
        RankRows([*training(right), *training(190 + number, "set_blind")])
        for number, right in enumerate((100, 104, 98))
    )
    other = tuple(map(training, (60, 62, 58)))
    runs = [
        ComparedRun("virtue", rows, "box", "virtue"),
        ComparedRun("set_blind", rows, "set_blind", "virtue"),
        ComparedRun("plain", other, "box", "virtue"),
    ]
    assert compare(runs).best == {"scar/seen": {"hit@1": "virtue"}}
    text = markdown_comparison(compare(runs))
    assert "| set_blind | **" not in text.split("differences")[0] and "| virtue | **" in text


def test_a_figure_at_chance_says_so() -> None:
    found = markdown_comparison(compare(RUNS[:2]), {"scar/seen": {"hit@1": 0.3, "object": 0.25}})
    assert "| plain | 30.0° (" in found and "| virtue | 55.0" in found


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (training(60, queries=120), "200 and 120 queries, 120 of them the same"),
        (training(60, candidates=12), "10 and 12 candidates"),
        (training(60, content="b"), r"images, regions or candidates under the same keys \(first: key-000\)"),
    ],
)
def test_other_queries_are_refused_or_said_to_be(other: RankRows, said: str) -> None:
    runs = [
        ComparedRun("virtue", (training(100, content="a"),), "box", "virtue"),
        ComparedRun("plain", (other,), "box", "virtue"),
    ]
    with pytest.raises(VirtueError, match=f"scar/seen: virtue and plain were tested on different data: {said}"):
        compare(runs)
    with pytest.raises(VirtueError, match="two trainings of virtue were tested on different data"):
        compare([ComparedRun("virtue", (training(100, content="a"), other), "box", "virtue")])
    apart = markdown_comparison(compare(runs, "any"))
    assert "unpaired: every run is on its own queries" in apart and "points more than virtue, unpaired" in apart


def test_runs_are_compared_on_what_they_share() -> None:
    runs = [ComparedRun(f"of {count}", (training(60, queries=count),), "box", "of 200") for count in (200, 120)]
    found = compare(runs, "shared")
    assert [row["hit@1"].queries for row in found.shares["scar/seen"].values()] == [120, 120]
    assert found.differences["scar/seen"]["of 120"]["hit@1"].mean == 0


def test_unpaired_differences_are_wider() -> None:
    """The same answers: paired, hardly any doubt; each on its own, that of two independent samples."""
    one, two = training(100), RankRows(row._replace(image=f"other-{row.image}") for row in training(96))
    runs = [ComparedRun("one", (one,), "box", "one"), ComparedRun("two", (two,), "box", "one")]
    paired, apart = (compare(runs, queries).differences["scar/seen"]["two"]["hit@1"] for queries in ("shared", "any"))
    assert apart.high - apart.low > 3 * (paired.high - paired.low)


def test_fingerprints_count_where_nothing_else_is_recorded() -> None:
    def runs(content: str) -> list[ComparedRun]:
        return [
            ComparedRun(name, (training(100, content=content),), "box", "a", fingerprints=(data,))
            for name, data in (("a", "0a"), ("b", "0b"))
        ]

    with pytest.raises(VirtueError, match="different data: data with the fingerprints 0a and 0b"):
        compare(runs(""))
    assert compare(runs("recorded")).differences


def test_means_have_differences_over_the_same_trainings() -> None:
    def both(right: int) -> RankRows:
        return RankRows([*training(right, task="mmeb/a"), *training(right // 2, task="mmeb/b")])

    runs = [
        ComparedRun(name, tuple(map(both, counts)), "box", "one")
        for name, counts in (("one", (100, 110, 120)), ("two", (60, 40, 50)))
    ]
    found = compare(runs)
    assert found.mean_differences["mmeb"]["two"].mean == pytest.approx(-0.225)
    assert found.mean_differences["mmeb"]["two"].differs and found.best["mean mmeb"] == {"hit@1": "one"}
    assert "### Means, differences" in markdown_comparison(found)


def test_what_is_missing_is_noted() -> None:
    notes = compare([*RUNS[:2], ComparedRun("other", (training(10, "point", "mmeb/cars"),), "point", "virtue")]).notes
    assert "modes: virtue box, plain box, other point" in notes and "other was not ranked on scar/seen" in notes
    bare = RankRows(row._replace(image="") for row in training(10))
    assert "queries are taken as independent" in compare([ComparedRun("a", (bare,), "box", "a")]).notes[0]


def test_what_runs_leave_out_stands_beside_their_means() -> None:
    """The same of all in one line, and else a line of each run."""
    lost = {"mmeb/a": {"missing image": 3}, "mmeb/b": {"bad sample": 1, "beyond test_rows": 1000}}
    rows = RankRows([*training(50, task="mmeb/a"), *training(100, task="mmeb/b")])
    whole, cut = (
        ComparedRun("whole", (rows,), "box", "whole"),
        ComparedRun("cut", (rows,), "box", "whole", left_out=lost),
    )
    alike = [replace(cut, name=name, reference="first") for name in ("first", "second")]
    lines = markdown_comparison(compare(alike)).splitlines()
    assert "| left out | 3 | 1,001 | 1,004 |" in lines
    assert any(line.endswith("; left out: 3 of 203 (3 missing image)") for line in lines)
    lines = markdown_comparison(compare([whole, cut])).splitlines()
    assert "| left out: cut | 3 | 1,001 | 1,004 |" in lines
    assert any(line.startswith("| cut |") and line.endswith("| 3 of 203 (3 missing image) |") for line in lines)
    assert compare([whole, cut]).as_json()["left_out"] == {"cut": lost}
    assert "left out" not in markdown_comparison(compare([whole]))


def test_what_is_left_out_is_read_from_reports(tmp_path: Path) -> None:
    """By task of a test, by set of an evaluation; the largest of a run's seeds."""
    reports: list[dict[str, Any]] = [
        {"left_out": {"mmeb/a": {"missing image": 3}, "mmeb/b": {}}},
        {"left_out": {"mmeb/a": {"missing image": 4, "bad sample": 1}}},
        {"left_out": {"ADE20K": {"missing image": 3}}, "sets": {"ADE20K": {"benchmark": "scar"}}},
    ]
    for seed, report in enumerate(reports):
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}/report.json").write_text(json.dumps(report))
    assert read_left_out(tmp_path) == {
        "mmeb/a": {"missing image": 4, "bad sample": 1},
        "scar/ADE20K": {"missing image": 3},
    }


def test_differences_to_several_runs_name_the_run() -> None:
    runs = [*RUNS[:2], ComparedRun("third", (training(50),), "box", "plain")]
    assert "| run | hit@1 | object | against | over |" in markdown_comparison(compare(runs))


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
        and "| 37.5 (" in first
        and second.startswith("| one | 50.0 (")
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


LINE = {"task": "own/test", "key": "test/0", "mode": "box", "ranks": {"hit@1": [0, 3]}}
ODD_LINES = ["", "[]", "3", "{}", '{"task', json.dumps(LINE)[:-9]] + [
    json.dumps({**LINE, **change})
    for change in ({"ranks": 3}, {"ranks": {"hit@1": 3}}, {"ranks": {"hit@1": [0]}}, {"key": 3}, {"task": None})
]
ODD_LINES += [json.dumps({**LINE, "ranks": {"hit@1": ["0", 3]}}), "[" * 100_000, "\xff"]


@pytest.mark.parametrize("line", ODD_LINES, ids=lambda line: line[:20])
def test_a_damaged_prediction_is_one_line_that_names_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "predictions.jsonl").write_bytes(f"{json.dumps(LINE)}\n{line}\n".encode("latin-1"))
    with pytest.raises(VirtueError, match=r"predictions\.jsonl, line 2, is no prediction") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"chance": []}', '{"context": 3}', '{"left_out": [3]}', "\xff"])
def test_a_damaged_report_is_one_line_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_bytes(content.encode("latin-1"))
    for read in (data_fingerprints, read_left_out, lambda folder: read_chance([folder])):
        with pytest.raises(VirtueError, match=r"report\.json is no report"):
            read(tmp_path)
