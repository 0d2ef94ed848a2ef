"""`virtue-pl shards pairs` and `virtue-pl doctor` on one's own data: codes, tables, schema, and the closest name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.own_files import write_rows
from virtue_pl.cli.commands import doctor, shards
from virtue_pl.cli.left_out import LeftOut, describe_excess
from virtue_pl.data.formats.own_columns import FIELDS, LISTS, schema_text
from virtue_pl.data.shards.manifest import FIRST_SKIPS, Manifest
from virtue_pl.data.shards.writer import ShardWriter
from virtue_pl.types import DataError, VirtueError

GOOD = {"image": "0.png", "text": "what", "target": "a disc", "negatives": ["a leaf"]}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


def rows(good: int, *bad: dict[str, Any]) -> list[dict[str, Any]]:
    return [*({**GOOD, "text": f"what {number}"} for number in range(good)), *bad]


def convert(tmp_path: Path, *more: str) -> int:
    return shards.main(["pairs", "--root", str(tmp_path / "own"), "--out", str(tmp_path / "out"), *more])


def table(printed: str) -> list[str]:
    """Return the lines of the table of rows left out, without its frame."""
    return [line for line in printed.partition("rows left out")[2].splitlines() if line.startswith("│")]


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shards.main(["pairs", "--schema"]) == 0 and capsys.readouterr().out == schema_text()
    assert json.loads(schema_text())["type"] == "object"


def test_the_help_names_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        shards.main(["pairs", "--help"])
    printed = capsys.readouterr().out
    assert [name for name in ("query", "target", *FIELDS, *LISTS) if f"\n  {name} " not in printed] == []


def test_a_misspelt_column_is_named_with_the_closest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "own", rows(9, {**GOOD, "box": [1, 2, 3, 4]}))
    assert convert(tmp_path, "--max-left-out", "0.05") == 1
    printed = capsys.readouterr()
    assert "train: 1 of 10 rows are left out (10.0%), more than --max-left-out 0.05 allows" in printed.err
    (line,) = table(printed.out)
    assert (
        "unknown column" in line and "train/9: 'box', did you mean boxes?" in line and "(train.jsonl, line 10)" in line
    )
    assert convert(tmp_path) == 0  # one in ten is what the default allows
    manifest = Manifest.read(tmp_path / "out/train/manifest.json")
    assert manifest.rows == 9 and manifest.skipped == {"unknown column": 1}


@pytest.mark.parametrize("share", ["0", "1"])
def test_all_rows_left_out_is_always_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], share: str) -> None:
    write_rows(tmp_path / "own", rows(0, {"text": "what"}, {"text": 3, "target": "a"}))
    assert convert(tmp_path, "--max-left-out", share) == 1
    assert "train: 2 of 2 rows are left out, that is all: mend the rows" in capsys.readouterr().err


def test_sound_rows_print_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "own", rows(3))
    assert convert(tmp_path, "--max-left-out", "0") == 0 and "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("share", ["-0.1", "1.1", "ten", "nan"])
def test_a_share_is_from_0_to_1(tmp_path: Path, share: str) -> None:
    with pytest.raises(SystemExit) as ended:
        convert(tmp_path, f"--max-left-out={share}")
    assert ended.value.code == 2


def test_options_hold_for_the_file(tmp_path: Path) -> None:
    row = {"image": "0.png", "boxes": [[0.2, 0.2, 0.6, 0.7]], "target": "a", "id": 3}
    write_rows(tmp_path / "own", [row])
    options = ["--box-format", "xyxy", "--units", "normalised", "--instruction", "Find it.", "--ignore-column", "id"]
    assert convert(tmp_path, *options) == 0 and doctor.main([str(tmp_path / "own"), *options]) == 0
    with pytest.raises(VirtueError, match=r"holds something else than shards of .* with these settings"):
        convert(tmp_path)


def test_the_doctor_says_the_same_before_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**GOOD, "bbox": [0.1, 0.1, 0.5, 0.5]}, {**GOOD, "image": "none.png"}, {**GOOD, "bbox": ["1", 2, 3, 4]}]
    write_rows(tmp_path / "own", rows(4, *bad, *bad, *bad, *bad))
    assert doctor.main([str(tmp_path / "own")]) == 1
    found = capsys.readouterr()
    assert not (tmp_path / "out").exists()
    assert convert(tmp_path) == 1
    made = table(capsys.readouterr().out)
    assert table(found.out) == made and sum("units not stated" in line for line in made) == 1


def test_the_first_rows_of_every_reason_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtue_pl.data.shards.writer.NAMED_SKIPS", 4)
    with ShardWriter(tmp_path / "out", 2) as writer:
        for number in range(20):
            writer.skip(DataError(f"a/{number}", f"reason {number // 10}: found"))
        assert [key for key, _ in writer.skipped_rows] == ["a/0", "a/1", "a/2", "a/3", "a/10", "a/11", "a/12"]
    assert FIRST_SKIPS == 3


@pytest.mark.parametrize(("sound", "left", "excess"), [(0, 0, False), (9, 1, False), (8, 2, True), (0, 1, True)])
def test_excess_is_more_than_the_share_or_all(sound: int, left: int, excess: bool) -> None:
    folder = LeftOut("train", sound, {"reason": left} if left else {}, [])
    assert bool(describe_excess(folder, 0.1)) == excess
