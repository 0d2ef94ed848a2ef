"""What is said of a path that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtue_pl.types import suggest_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data/shards/my_photos").mkdir(parents=True)
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/shards/my_photo", "data/shards/my_photos"),
        ("data/shard/my_photos", "data/shards/my_photos"),
        ("data/shard/other", "data/shards"),
        ("strat", "start"),
        ("./strat", "start"),
    ],
)
def test_the_nearest_path_that_is_there_is_named(path: str, expected: str, folder: Path) -> None:
    assert suggest_path(path) == f"; did you mean {expected}?"
    assert suggest_path(folder / path) == f"; did you mean {folder / expected}?"


@pytest.mark.parametrize("path", ["start", "nothing/like/it", "", "zzz", "start/file", "../elsewhere\0"])
def test_nothing_is_named_where_nothing_is_near(path: str) -> None:
    assert suggest_path(path) == ""
