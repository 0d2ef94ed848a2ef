"""MMEB and SCaR by name: which sets, capped, resized to squares, from a folder or from a server that stumbles."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fixtures.data_options import DATASET, grouped
from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import write_scar
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.benchmark import BenchmarkDataModule, BenchmarkMixture, groups, locate_set, select_sets
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.io import cache, remote
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.options import ReaderOptions
from virtue_pl.types import RankingSample, Sample, VirtueError

SETS = ["OK_VQA", "MSCOCO_t2i"]


class Kept:
    """A collator whose batches are the samples."""

    fingerprints: ClassVar[dict[str, str]] = {}

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return list(samples)

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        return list(samples)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each set of MMEB 8 rows to train on and 8 to test, 2 images a shard; SCaR-mini beside."""
    folder = tmp_path_factory.mktemp("benchmark")
    convert_mmeb(write_mmeb(folder / "mmeb"), folder / "out", images_per_shard=2)
    convert_scar(write_scar(folder / "scar", train=[1, 2, 3, 1, 2], val=[1, 2]), folder / "out", images_per_shard=2)
    return folder / "out"


def benchmark(root: Path | str, **options: Any) -> BenchmarkDataModule:
    settings = {"sets": SETS, "root": str(root), "batch_size": 4, "block_size": 2, "eval_batch_size": 3, **options}
    data = BenchmarkDataModule(**grouped(settings, {"mixture": BenchmarkMixture, "reader": ReaderOptions}))
    data.connect(Kept())  # type: ignore[arg-type]
    return data


def keys(loader: Any) -> list[list[str]]:
    return [[sample.key for sample in batch] for batch in loader]


def test_the_groups_are_the_benchmarks() -> None:
    found = groups()
    counts = {
        "mmeb": 36,
        "mmeb_IND": 20,
        "mmeb_OOD": 16,
        "scar": 5,
        "mmeb_classification": 10,
        "mmeb_vqa": 10,
        "mmeb_retrieval": 12,
        "mmeb_grounding": 4,
    }
    assert {name: len(found[name]) for name in counts} == counts and len(found["mmeb_mini"]) == 8
    assert len(select_sets(["mmeb", "scar", "MSCOCO", "mmeb_vqa"])) == 41
    trained = {name for name in found["mmeb"] if locate_set(name)[1]}
    assert trained == set(found["mmeb_IND"])
    assert locate_set("ADE20K") == (SCaRDataModule, "SCAR_ADE20K", "SCaR_eval_ADE20K", False)
    assert locate_set("CIRR") == (MMEBDataModule, "MMEB_CIRR", "MMEB_eval_CIRR", True)


def test_one_line_names_all_sets() -> None:
    """Nothing is opened before it is read."""
    mixture = BenchmarkMixture(num_negatives=dict.fromkeys(groups()["scar"], 9), train_rows=100)
    data = BenchmarkDataModule(["mmeb", "scar"], "nowhere", mixture=mixture)
    assert len(data.parts) == 41 and len(data.weights) == 25
    assert (
        data.parts["ADE20K"].num_negatives == 9
        and data.parts["CIRR"].num_negatives == 0
        and data.parts["CIRR"].sampling.train_rows == 100
    )
    assert (data.parts["CIRR"].eval_batch_size, data.parts["OK_VQA"].eval_batch_size) == (1, 16)
    assert not BenchmarkDataModule(["mmeb"], "nowhere", train=False).weights


def test_training_is_capped_and_evaluation_whole(shards: Path) -> None:
    data = benchmark(shards, train_rows={"OK_VQA": 3}, batch_size=2, steps_per_epoch=60)
    seen = {key for batch in keys(data.train_dataloader()) for key in batch}
    vqa = {key for key in seen if key.startswith("MMEB_OK_VQA/")}
    assert 1 <= len(vqa) <= 3 and len(seen - vqa) == 8
    first = ShardFolder.open(shards / "MMEB_OK_VQA", "train").limit_rows(3)
    assert first.manifest.rows == len(vqa) == data.parts["OK_VQA"].train_folder.manifest.rows
    tested = [key for batch in keys(data.test_dataloader()) for key in batch]
    assert sorted(tested) == sorted(f"MMEB_eval_{name}/{row}" for name in SETS for row in range(8))


@pytest.mark.parametrize("rows", [1, 4, 9, 10**6])
def test_a_cap_keeps_the_first_images_whole(shards: Path, rows: int) -> None:
    whole = ShardFolder.open(shards / "SCAR_mini", "train")
    cut = whole.limit_rows(rows)
    counts = [count for shard in whole.manifest.shards for count in shard.rows_per_image]
    kept = [count for shard in cut.manifest.shards for count in shard.rows_per_image]
    assert kept == counts[: len(kept)] and sum(kept) == cut.manifest.rows <= rows
    assert len(kept) == len(counts) or sum(counts[: len(kept) + 1]) > rows


def test_resized_images_are_squares_and_regions_stay(shards: Path) -> None:
    def samples(**options: Any) -> dict[str, Sample]:
        data = SCaRDataModule(
            str(shards / "SCAR_mini"), **grouped({"batch_size": 4, "steps_per_epoch": 4, **options}, DATASET)
        )
        data.connect(Kept())  # type: ignore[arg-type]
        return {sample.key: sample for batch in data.train_dataloader() for sample in batch}

    own, resized = samples(), samples(resize_to_square=20)
    assert set(own) == set(resized)
    for key, sample in resized.items():
        before = own[key]
        assert sample.region is not None and before.region is not None
        assert sample.query.images[0].shape == (3, 20, 20) != before.query.images[0].shape
        assert torch.equal(sample.region.box, before.region.box) and sample.query.image_keys != before.query.image_keys
    with pytest.raises(VirtueError, match="resize_to_square is 20, but features are of images at their own size"):
        samples(resize_to_square=20, features="features")


class Stumbling(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, but the first time that a tar is asked for it fails, and the second time it breaks off."""

    asked: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if self.path.endswith(".tar") and self.asked[self.path] == 1:
            self.send_error(503)
        elif self.path.endswith(".tar") and self.asked[self.path] == 2:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"only the beginning")
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    Stumbling.asked.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Stumbling, directory=str(shards))
    ) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_url_streams_what_the_folder_does(shards: Path, server: str, tmp_path: Path, num_workers: int) -> None:
    def stream(root: str | Path) -> Any:
        data = benchmark(root, cache=CacheOptions(str(tmp_path / "cache")), num_workers=num_workers)
        return keys(data.train_dataloader()), keys(data.test_dataloader()), data.fingerprint()

    assert stream(server) == stream(shards)
    tars = {path: count for path, count in Stumbling.asked.items() if path.endswith(".tar")}
    assert tars and all(count >= 3 for count in tars.values())
    assert stream(server) == stream(shards), "from the cache"
    assert {path: count for path, count in Stumbling.asked.items() if path.endswith(".tar")} == tars
    assert not list((tmp_path / "cache").rglob(".*"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_limited_cache_streams_the_same(shards: Path, server: str, tmp_path: Path, num_workers: int) -> None:
    """The workers are processes that take room from one another."""
    sizes = sorted(path.stat().st_size for path in shards.rglob("*.tar"))
    limit, most = 2 * sizes[-1], (2 + num_workers) * sizes[-1]
    assert sum(sizes) > 2 * most

    def stream(root: str | Path, **options: Any) -> Any:
        data = benchmark(root, num_workers=num_workers, **options)
        return keys(data.train_dataloader()), keys(data.test_dataloader())

    assert stream(server, cache=CacheOptions(str(tmp_path), limit / 1e9)) == stream(shards)
    left = list(tmp_path.rglob("*.tar"))
    assert left and sum(path.stat().st_size for path in left) <= most and len(list(tmp_path.rglob(".*"))) == 1
    with pytest.raises(
        VirtueError,
        match=r"cache.max_gb is 1e-09, but one shard has .* GB: raise cache.max_gb, or write smaller shards",
    ):
        stream(server, cache=CacheOptions(str(tmp_path / "other"), 1e-9))
    with pytest.raises(VirtueError, match=r"cache.max_gb is 0, expected more than 0, or null for no limit"):
        CacheOptions(str(tmp_path), 0)


def test_the_least_recently_read_make_room_but_not_what_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "set-0123456789ab"
    folder.mkdir()
    other = tmp_path / "weights.tar"
    names = ("a.tar", "b.tar", "c.tar", ".d.tar.left", ".e.tar.new")
    for number, path in enumerate([*(folder / name for name in names), other]):
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    os.utime(folder / ".e.tar.new")
    with cache.hold_copy(folder / "b.tar") as there:
        assert there
        os.utime(folder / "b.tar", (1, 1))
        cache.make_room(tmp_path, 400, 100)
        assert sorted(path.name for path in folder.iterdir()) == [".d.tar.left", ".e.tar.new", "b.tar"]
        cache.make_room(tmp_path, 150, 100)
        assert sorted(path.name for path in folder.iterdir()) == [".e.tar.new", "b.tar"]
    cache.make_room(tmp_path, 150, 100)
    assert [path.name for path in folder.iterdir()] == [".e.tar.new"] and other.is_file()
    with cache.hold_copy(folder / "b.tar") as there:
        assert not there


def test_what_cannot_be_had_is_one_line(
    shards: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheOptions(str(tmp_path))
    with pytest.raises(VirtueError, match=r"train: http://.*/nowhere/MMEB_OK_VQA/manifest.json is not there"):
        benchmark(f"{server}/nowhere", cache=cache).train_dataloader()
    with pytest.raises(VirtueError, match=r"train: nothing://x/MMEB_OK_VQA: Protocol not known"):
        benchmark("nothing://x", cache=cache).train_dataloader()
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    with pytest.raises(VirtueError, match=r"shard-\d+.tar could not be read, in 1 attempts .*answers 503") as caught:
        list(benchmark(server, cache=cache).train_dataloader())
    assert "\n" not in str(caught.value)
    with pytest.raises(VirtueError, match=r"a file is called '../x', expected a name without folders"):
        remote.RemoteFolder(server, cache).fetch("../x")
    for options, message in (
        ({"sets": ["other"]}, "sets: 'other' is no set and no group, expected some of mmeb, mmeb_IND"),
        ({"sets": []}, "sets is empty"),
        ({"train_rows": {"CIRR": 3}}, "train_rows: 'CIRR' is not among the sets, expected some of OK_VQA, MSCOCO_t2i"),
        ({"resize_to_square": 0}, "resize_to_square is 0, expected 1 or more"),
    ):
        with pytest.raises(VirtueError, match=message):
            benchmark(shards, **options)
