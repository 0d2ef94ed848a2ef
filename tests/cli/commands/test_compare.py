from __future__ import annotations

import json
from pathlib import Path

import pytest

from virtue_pl.cli.main import main


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    """Two runs of 40 queries, in two modes each."""
    for name, right in (("virtue", 30), ("plain", 10)):
        ranks = {key: {"hit@1": [int(key >= right), 10]} for key in range(40)}
        lines = [
            {"task": "quiz/seen", "key": str(key), "mode": mode, "ranks": ranks[key]}
            for key in ranks
            for mode in ("box", "point")
        ]
        folder = tmp_path / name
        folder.mkdir()
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "report.json").write_text(
            json.dumps({"chance": {"quiz/seen": {"hit@1": 0.1}}, "context": {"data_fingerprint": "0a"}})
        )
    return tmp_path


def test_runs_and_modes_side_by_side(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"{tested}/virtue", f"{tested}/virtue:point", f"{tested}/plain"]
    assert main(["compare", *runs, "--out", str(tested / "out"), "--plots"]) == 0
    assert sorted(path.name for path in (tested / "out").iterdir()) == [
        "bars_quiz.png",
        "compare.html",
        "compare.json",
        "compare.md",
    ]
    found = json.loads((tested / "out" / "compare.json").read_text())
    assert found["shares"]["quiz/seen"].keys() == {"virtue", "virtue:point", "plain"}
    assert found["differences"]["quiz/seen"]["plain"]["hit@1"]["mean"] == pytest.approx(-0.5)
    assert found["against"] == {"virtue:point": "virtue", "plain": "virtue"} and found["chance"] == {
        "quiz/seen": {"hit@1": 0.1}
    }
    assert found["data_fingerprints"] == {name: ["0a"] for name in found["shares"]["quiz/seen"]}
    assert "| plain | 25.0" in (tested / "out" / "compare.md").read_text()
    shown = capsys.readouterr().out
    assert "virtue:point" in shown and "-50.0" in shown


def test_runs_of_one_name_go_by_their_paths(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tested / "again").mkdir()
    (tested / "plain").rename(tested / "again" / "virtue")
    assert main(["compare", f"{tested}/virtue", f"{tested}/again/virtue"]) == 0
    assert main(["compare", f"{tested}/virtue", f"{tested}/virtue"]) == 1
    assert "name a run twice" in capsys.readouterr().err


def test_runs_tested_on_different_data_are_refused(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same keys, other fingerprints; then again with a limit."""
    report = {"chance": {"quiz/seen": {"hit@1": 0.1}}, "context": {"data_fingerprint": "0b"}}
    (tested / "plain" / "report.json").write_text(json.dumps(report))
    runs = [f"{tested}/virtue", f"{tested}/plain"]
    assert main(["compare", *runs]) == 1
    said = capsys.readouterr().err
    assert "virtue and plain were tested on different data" in said and "--queries any" in said
    assert len(said.strip().splitlines()) == 1
    assert main(["compare", *runs, "--queries", "any"]) == 0 and "unpaired" in capsys.readouterr().out
    lines = (tested / "plain" / "predictions.jsonl").read_text().splitlines()
    (tested / "plain" / "predictions.jsonl").write_text("\n".join(lines[:20]) + "\n")
    assert main(["compare", *runs]) == 1 and "40 and 10 queries" in capsys.readouterr().err
    assert main(["compare", *runs, "--queries", "shared"]) == 0


def test_settings_that_differ_stand_below_the_tables(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, stream in (("virtue", "whole"), ("plain", "none")):
        report = {"chance": {}, "settings": {"stream": stream, "mode": "box"}, "context": {"data_fingerprint": "0a"}}
        (tested / name / "report.json").write_text(json.dumps(report))
    assert main(["compare", f"{tested}/virtue", f"{tested}/plain"]) == 0
    assert "stream: virtue whole, plain none" in capsys.readouterr().out
