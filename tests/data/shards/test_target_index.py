"""Digests of targets: equal for equal targets, written beside shards, made again where missing or of others."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fixtures.scar_files import write_scar
from fixtures.shard_files import seal, tars
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.target_index import TARGETS, read_targets, target_digest
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.record_reader import RecordReader
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import VirtueError


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
    monkeypatch.setattr("virtue_pl.data.shards.row_digests.RowDigests.write", refuse)
    assert np.array_equal(read_targets(folder), written) and not (folder.path / TARGETS).exists()


def refuse(*arguments: object) -> None:
    raise PermissionError("read-only")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one less": lambda targets: targets[:-1],
    "more": lambda targets: np.concatenate([targets, targets]),
    "a column": lambda targets: targets[:, None],
    "all equal": np.zeros_like,
    "one other": lambda targets: targets ^ (np.arange(len(targets)) == 2),
    **{name: lambda targets, name=name: targets.astype(name) for name in ("f8", "f4", "i1", "u8", "?")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_digests_are_made_again(folder: ShardFolder, change: str) -> None:
    """Every rank plans by its own copy: one that differs would train on other rows."""
    written, path = read_targets(folder), folder.path / TARGETS
    with safe_open(path, "numpy") as file:
        about, found = file.metadata(), file.get_tensor("targets")
    path.unlink()
    save_file({"targets": CHANGES[change](found)}, path, about)
    assert np.array_equal(read_targets(folder), written)


def test_digests_of_a_type_that_numpy_lacks_are_made_again(folder: ShardFolder) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    written = read_targets(folder)
    save_torch({"targets": torch.zeros(7, dtype=torch.bfloat16)}, folder.path / TARGETS, {"sha256": "0"})
    assert np.array_equal(read_targets(folder), written)


Files = list[tuple[str, bytes]]


def rewrite(folder: ShardFolder, change: Callable[[Files], Files]) -> ShardFolder:
    """Return the folder with the files of its first tar changed, and a manifest that knows it."""
    path = tars(folder.path)[0]
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in change(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder.path / TARGETS).unlink()
    return ShardFolder.open(seal(folder.path), "train")


def with_rows(change: Callable[[list[Any]], list[Any]]) -> Callable[[Files], Files]:
    """Return a change of the first record's rows."""

    def rows(files: Files) -> Files:
        content = json.loads(files[1][1])
        return [files[0], (files[1][0], json.dumps({**content, "rows": change(content["rows"])}).encode()), *files[2:]]

    return rows


REFUSED: dict[str, Callable[[Files], Files]] = {
    "0 rows, expected": with_rows(lambda rows: []),
    "rows, expected": with_rows(lambda rows: rows * 2),
    r"two files 000000000\.(jpg|png)": lambda files: [files[0], (files[0][0], files[2][1]), *files[1:]],
    r"two files 000000000\.json": lambda files: [*files[:2], (files[1][0], files[3][1]), *files[2:]],
    "found record ,": lambda files: [("._" + files[0][0], b"AppleDouble"), *files],
    "found record README": lambda files: [*files, ("README", b"")],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_tar_that_is_not_the_manifests_is_one_line(folder: ShardFolder, message: str) -> None:
    """With and without digests, so that one who reads it and one who plans say the same."""
    changed = rewrite(folder, REFUSED[message])
    with pytest.raises(VirtueError, match=f"is not the shard of its manifest.*{message}"):
        read_targets(changed)
    with (
        pytest.raises(VirtueError, match=f"is not the shard of its manifest.*{message}"),
        RecordReader(changed, SkipLog(BadSampleLimits())) as reader,
    ):
        reader.read(0, 0)


def test_a_target_that_is_no_unicode_has_a_digest(folder: ShardFolder) -> None:
    changed = rewrite(folder, with_rows(lambda rows: [{**row, "target": "\ud800"} for row in rows]))
    assert len(set(read_targets(changed).tolist())) > 1
