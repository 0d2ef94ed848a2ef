"""Shards that are damaged in every way, read by all readers: the whole set, or one error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.evaluation_files import write_scar_set
from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import write_scar
from fixtures.shard_files import copy_of, damages, manifest_damages, members, tars
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.doctor.examine import count_errors, examine
from virtue_pl.data.eval_sets.files import SetFiles, find_set, resolve_sets
from virtue_pl.data.eval_sets.images import ImageLibrary
from virtue_pl.data.eval_sets.read_set import read_set
from virtue_pl.data.eval_sets.rows import RowReader
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import VirtueError

PAIRS, RANKINGS = ("SCAR_mini", "MMEB_MSCOCO_t2i"), ("SCaR_eval_mini_test_seen", "MMEB_eval_OK_VQA")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of training and two of evaluation shards, each of two shards or more."""
    root = tmp_path_factory.mktemp("damaged")
    write_scar(root / "scar", train=[1, 2, 1, 1], val=[1, 2, 1, 1])
    (root / "scar/SCaR-eval/SCaR_eval_mini_val.parquet").rename(
        root / "scar/SCaR-eval/SCaR_eval_mini_test_seen.parquet"
    )
    convert_scar(root / "scar", root / "out", images_per_shard=2)
    convert_mmeb(write_mmeb(root / "mmeb", count=4), root / "out", images_per_shard=1)
    return root / "out"


def records_of(folder: ShardFolder) -> list[str]:
    """Every row of every record, as a training reads it."""
    log = SkipLog(BadSampleLimits())
    found = read_shards(({"url": str(path)} for path in folder.paths), folder, log)
    return sorted(f"{row.key} {record.key} {row.fields}" for record in found for row in record.rows)


def read_training(path: Path) -> list[str]:
    return records_of(ShardFolder.open(path, "train"))


def read_evaluation(path: Path) -> list[Any]:
    (about,) = resolve_sets([path.name])
    files = find_set(path, about)
    assert files is not None
    return [(row.row, row.image, row.text) for row in read_set(files, RowReader(ImageLibrary())).rows]


def read_test(path: Path) -> list[Any]:
    module: Any = MMEBDataModule if path.name.startswith("MMEB") else SCaRDataModule
    data = module(test={"test": str(path)}, batch_size=2)
    data.connect(Keep())
    found = [
        (sample.key, [item.text for item in sample.candidates]) for batch in data.test_dataloader() for sample in batch
    ]
    return sorted(found)


class Keep:
    def collate_train(self, samples: Any) -> Any:
        return list(samples)

    collate_eval = collate_train


READERS: list[tuple[str, Callable[[Path], list[Any]]]] = [
    *((name, read_training) for name in PAIRS),
    *((name, reader) for name in RANKINGS for reader in (read_evaluation, read_test)),
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[f"{name}-{read.__name__}" for name, read in READERS])
def test_a_damaged_folder_is_read_whole_or_refused(shards: Path, tmp_path: Path, name: str, read: Any) -> None:
    whole = read(shards / name)
    assert whole and read(copy_of(shards / name, tmp_path / name)) == whole
    tried = 0
    for what, damage in [*damages(shards / name), *manifest_damages(shards / name)]:
        damage(copy_of(shards / name, tmp_path / name))
        with pytest.raises(VirtueError) as caught:
            assert read(tmp_path / name) == whole, what
            raise VirtueError("whole")
        assert "\n" not in str(caught.value), what
        if "more" not in what and "name" not in what:
            assert str(caught.value) != "whole", what
        tried += 1
    assert tried > 40


@pytest.mark.parametrize("name", PAIRS)
def test_a_shard_that_is_damaged_while_a_training_runs_is_named(shards: Path, tmp_path: Path, name: str) -> None:
    whole = records_of(ShardFolder.open(shards / name, "train"))
    for what, damage in damages(shards / name):
        folder = ShardFolder.open(copy_of(shards / name, tmp_path / name), "train")
        damage(tmp_path / name)
        if "gone" in what:
            continue
        try:
            assert records_of(folder) == whole and ("more" in what or "another name" in what), what
        except VirtueError as error:
            assert "is not the shard of its manifest.json" in str(error) and ".tar" in str(error), what
            assert "records were found before" in str(error) or "SHA-256" in str(error), what


@pytest.mark.parametrize("name", RANKINGS)
def test_a_changed_byte_is_found_where_results_hang_on_it(shards: Path, tmp_path: Path, name: str) -> None:
    shard = tars(shards / name)[0]
    for member in members(shard):
        folder = copy_of(shards / name, tmp_path / name)
        data = bytearray(shard.read_bytes())
        data[member.offset_data + member.size // 2] ^= 1
        (folder / shard.name).write_bytes(bytes(data))
        for read in (read_evaluation, read_test):
            with pytest.raises(VirtueError, match=r"is not the shard of its manifest.json: SHA-256 "):
                read(folder)
        (checkup,) = examine([folder], max_pixels=MAX_PIXELS)
        assert "shard changed" in {finding.kind for finding in checkup.findings}


@pytest.mark.parametrize("name", [*PAIRS, *RANKINGS])
def test_the_doctor_finds_every_damage(shards: Path, tmp_path: Path, name: str) -> None:
    assert count_errors(examine([shards / name], max_pixels=MAX_PIXELS)) == 0
    for what, damage in [*damages(shards / name), *manifest_damages(shards / name)]:
        damage(copy_of(shards / name, tmp_path / name))
        try:
            assert count_errors(examine([tmp_path / name], max_pixels=MAX_PIXELS)), what
        except VirtueError as error:
            assert "\n" not in str(error)


def test_a_copy_from_a_url_is_checked_when_it_is_first_read(shards: Path, tmp_path: Path) -> None:
    source = copy_of(shards / RANKINGS[0], tmp_path / "served")
    cache = CacheOptions(str(tmp_path / "cache"))
    whole = records_of(ShardFolder.open(f"file://{source}", "test", cache))
    copies = sorted((tmp_path / "cache").rglob("*.tar"))
    assert len(copies) == len(tars(source)) and len(whole) == 5
    copies[0].write_bytes(copies[0].read_bytes()[:-512])  # another length: it is copied again
    assert records_of(ShardFolder.open(f"file://{source}", "test", cache)) == whole
    copies[0].unlink()
    damaged = bytearray((source / copies[0].name).read_bytes())
    damaged[600] ^= 1
    copies[0].write_bytes(bytes(damaged))
    with pytest.raises(VirtueError, match=r"SHA-256 .* delete it, it is copied again"):
        records_of(ShardFolder.open(f"file://{source}", "test", cache))


def test_a_set_in_several_files_is_whole_or_refused(tmp_path: Path) -> None:
    (about,) = resolve_sets(["ADE20K"])
    write_scar_set(tmp_path, rows=2)
    first = tmp_path / "data/SCaR_eval_ADE20K.parquet"
    first.rename(tmp_path / "data/ADE20K-00000-of-00002.parquet")
    with pytest.raises(VirtueError, match=r"SCaR_ADE20K: .* holds ADE20K-00000-of-00002.parquet, expected the 2 files"):
        find_set(tmp_path, about)
    write_scar_set(tmp_path, rows=2)
    first.rename(tmp_path / "data/ADE20K-00001-of-00002.parquet")
    found = find_set(tmp_path, about)
    assert isinstance(found, SetFiles) and len(read_set(found, RowReader(ImageLibrary())).rows) == 4
    write_scar_set(tmp_path, rows=2)
    with pytest.raises(VirtueError, match="remove those of another"):
        find_set(tmp_path, about)


def test_sampling_over_a_damaged_folder_stops_at_once(shards: Path, tmp_path: Path) -> None:
    folder = copy_of(shards / PAIRS[0], tmp_path / PAIRS[0])
    data = SCaRDataModule(str(folder), batch_size=1, sampling=SamplingOptions(steps_per_epoch=3))
    data.connect(Keep())  # type: ignore[arg-type]
    loader = data.train_dataloader()
    tars(folder)[0].write_bytes(tars(folder)[1].read_bytes())
    with pytest.raises(VirtueError, match=r"shard-000000.tar is not the shard .* found record 000000002"):
        list(loader)
