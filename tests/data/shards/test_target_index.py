"""Digests of targets: equal for equal targets, written beside shards, made again where missing or of others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fixtures.scar_files import write_scar
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.target_index import TARGETS, read_targets, target_digest


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    convert_scar(write_scar(tmp_path / "scar", train=[1, 2, 3, 1], val=[1]), tmp_path / "out", images_per_shard=2)
    return ShardFolder.open(tmp_path / "out/SCAR_mini", "train")


def test_a_digest_is_of_text_and_image() -> None:
    def digest(target: object, *images: bytes) -> int:
        return target_digest({"row": 3, "target": target}, images)

    equal = digest(["a cat", 1], b"dog", b"cat"), digest(["a cat", 1], b"mouse", b"cat")
    assert equal[0] == equal[1] and 0 <= equal[0] < 2**63
    others = [digest(["a cat", 0], b"dog", b"cat"), digest(["a dog", 1], b"dog", b"cat"), digest("a cat"), digest(None)]
    assert len({equal[0], *others}) == 5
    assert target_digest({"row": 3}, ()) != target_digest({"row": 4}, ())
    assert digest(["two", [0, 1]], b"a", b"b") != digest(["two", [0, 1]], b"a", b"c")


def test_the_writer_leaves_what_reading_the_shards_gives(folder: ShardFolder) -> None:
    written = read_targets(folder)
    assert (folder.path / TARGETS).is_file() and len(written) == 7
    (folder.path / TARGETS).unlink()
    assert np.array_equal(read_targets(folder), written)
    assert (folder.path / TARGETS).is_file()


def test_digests_of_other_shards_are_not_taken(folder: ShardFolder, tmp_path: Path) -> None:
    written = read_targets(folder)
    convert_scar(write_scar(tmp_path / "more", train=[2, 2, 2, 2], val=[1]), tmp_path / "others", images_per_shard=2)
    os.replace(tmp_path / "others/SCAR_mini" / TARGETS, folder.path / TARGETS)
    assert np.array_equal(read_targets(folder), written)
    (folder.path / TARGETS).write_bytes(b"no digests")
    assert np.array_equal(read_targets(folder), written)


def test_a_cut_folder_has_the_first_digests(folder: ShardFolder) -> None:
    assert np.array_equal(read_targets(folder.limit_rows(3)), read_targets(folder)[:3])


def test_a_folder_that_cannot_be_written_is_read_each_time(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = read_targets(folder)
    (folder.path / TARGETS).unlink()
    monkeypatch.setattr("virtue_pl.data.shards.target_index.write_targets", refuse)
    assert np.array_equal(read_targets(folder), written) and not (folder.path / TARGETS).exists()


def refuse(*arguments: object) -> None:
    raise PermissionError("read-only")
