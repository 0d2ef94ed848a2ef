"""Digests of regions' names: equal for equal names, written beside the shards, and told where they cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.scar_files import write_scar
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.shards.category_index import CATEGORIES, NO_CATEGORY, category_digest, read_categories
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.types import VirtueError

NAMES = ["owl", "fox", "owl", None, "", "eel", "owl"]


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    def name(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row, its_name in zip(pairs, NAMES, strict=True):
            row["category"] = its_name

    convert_scar(write_scar(tmp_path / "scar", train=[1, 2, 3, 1], edit=name), tmp_path / "out", images_per_shard=2)
    return ShardFolder.open(tmp_path / "out/SCAR_mini", "train")


def test_digests_are_equal_for_equal_names(folder: ShardFolder) -> None:
    digests = read_categories(folder).tolist()
    assert (folder.path / CATEGORIES).is_file()
    owl, fox, eel = (category_digest({"category": name}, ()) for name in ("owl", "fox", "eel"))
    assert sorted(digests) == sorted([owl] * 3 + [fox, eel] + [NO_CATEGORY] * 2) and min(owl, fox, eel) >= 0
    (folder.path / CATEGORIES).unlink()
    assert read_categories(folder).tolist() == digests
    (folder.path / CATEGORIES).write_bytes(b"no digests")
    assert read_categories(folder).tolist() == digests
    assert read_categories(folder.limit_rows(3)).tolist() == digests[: folder.limit_rows(3).manifest.rows]


def test_shards_that_are_elsewhere_are_told(folder: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtue_pl.data.shards.row_digests.RowDigests.read", lambda self, folder: None)
    with pytest.raises(VirtueError, match=r"only known of shards on this machine, or from categories\.safetensors"):
        read_categories(replace(folder))
