"""Fits whose training shards come over http: every row once before any comes again, each shard copied once."""

from __future__ import annotations

import pickle
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from fixtures.scar_files import write_scar
from fixtures.shard_files import seal, tars
from fixtures.shard_server import Server, serve
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.io import remote, transfer
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.target_index import TARGETS
from virtue_pl.data.streaming.options import BadSampleLimits, ReaderOptions, SamplingOptions
from virtue_pl.data.streaming.record_reader import RecordReader
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import Sample, VirtueError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
COUNTS = [1, 2, 3, 1, 2, 1, 2, 1, 1, 2]
ROWS = sum(COUNTS)


class Keys:
    """A collator whose batches are the samples' keys."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return [sample.key for sample in samples]

    collate_eval = collate_train


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def training_step(self, batch: list[str], batch_idx: int) -> Any:
        self.seen.append(batch)
        return self.weight * 0.0

    def validation_step(self, batch: list[str], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training shards of 10 images and 16 rows, two images a shard."""
    folder = tmp_path_factory.mktemp("remote")
    convert_scar(write_scar(folder / "scar", train=COUNTS, val=[1]), folder / "out", images_per_shard=2)
    return folder / "out"


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(transfer, "SILENCE", 5.0)
    with serve(shards) as found:
        yield found


def data_of(root: str | Path, cache: Path, workers: int = 0, max_gb: float | None = None) -> SCaRDataModule:
    data = SCaRDataModule(
        train=f"{root}/SCAR_mini",
        batch_size=2,
        sampling=SamplingOptions(num_negatives=2, shuffle_buffer=4, sample_buffer=3),
        reader=ReaderOptions(num_workers=workers),
        cache=CacheOptions(str(cache), max_gb),
    )
    data.connect(Keys())  # type: ignore[arg-type]
    return data


def fit(data: SCaRDataModule, **options: Any) -> list[list[str]]:
    model = Recorder()
    quiet: dict[str, Any] = {name: False for name in ("logger", "enable_progress_bar", "enable_model_summary")}
    quiet |= {"enable_checkpointing": False, "limit_val_batches": 0}
    Trainer(accelerator="cpu", **quiet, **options).fit(model, datamodule=data)
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_over_http_is_that_of_the_folder(server: Server, shards: Path, tmp_path: Path, workers: int) -> None:
    server.faults = {"shard-000001.tar": ["503", "break"], "shard-000002.tar": ["break without length"]}
    expected = fit(data_of(shards, tmp_path), max_epochs=3)
    seen = fit(data_of(server.url, tmp_path, workers), max_epochs=3)
    assert seen == expected and len(seen) == 3 * 8
    assert Counter(key for batch in seen for key in batch) == {f"SCAR_mini/{row}": 3 for row in range(ROWS)}
    tars_asked = Counter(path for path, _ in server.asked if path.endswith(".tar"))
    assert tars_asked.pop("/SCAR_mini/shard-000001.tar") == 3 and tars_asked.pop("/SCAR_mini/shard-000002.tar") == 2
    assert set(tars_asked.values()) == {1}
    assert sum(path.endswith(TARGETS) for path, _ in server.asked) <= max(1, workers)

    asked = len(server.asked)  # a second fit in the same process
    assert fit(data_of(server.url, tmp_path, workers), max_epochs=1) == expected[:8]
    assert [path for path, _ in server.asked[asked:]] == ["/SCAR_mini/manifest.json"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_limited_pass_goes_on_where_it_stopped(
    server: Server, shards: Path, tmp_path: Path, workers: int, limit: int
) -> None:
    whole = fit(data_of(shards, tmp_path), max_epochs=2)
    seen = fit(data_of(server.url, tmp_path, workers), max_epochs=4, limit_train_batches=limit)
    assert seen == whole[: 4 * limit]


def test_workers_that_are_spawned_read_the_same(server: Server, shards: Path, tmp_path: Path) -> None:
    """A spawned worker is given the stream as it is pickled for another process."""
    expected = data_of(shards, tmp_path).train_dataloader().stream
    stream = data_of(server.url, tmp_path).train_dataloader().stream
    end = expected.num_batches
    for each in (expected, stream):
        each.end.fill_(end)  # type: ignore[attr-defined]
    received = pickle.loads(bytes(ForkingPickler.dumps(stream)))
    assert [delivery.batch for delivery in received] == [delivery.batch for delivery in expected]


def test_shards_without_digests_are_read_alike_by_all(server: Server, tmp_path: Path) -> None:
    server.faults[TARGETS] = ["404"] * 9
    data = data_of(server.url, tmp_path, 2)
    first = fit(data, max_epochs=2)
    assert Counter(key for batch in first for key in batch) == {f"SCAR_mini/{row}": 2 for row in range(ROWS)}


def test_digests_that_cannot_be_read_now_are_no_missing_ones(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    server.faults[TARGETS] = ["503"] * 9
    with pytest.raises(VirtueError, match=r"targets.safetensors could not be read, in 2 attempts"):
        fit(data_of(server.url, tmp_path), max_epochs=1)


@pytest.mark.parametrize("layout", ["gnu", "0.0", "0.1", "1.0"])
def test_a_sparse_tar_is_read_as_any(tmp_path: Path, layout: str) -> None:
    """Some of its files have holes, which `tar --sparse` leaves out."""
    convert_scar(write_scar(tmp_path / "scar", train=[1, 2, 1], val=[1]), tmp_path / "out", images_per_shard=2)
    path = tmp_path / "out/SCAR_mini"
    form = ["--format=gnu"] if layout == "gnu" else ["--format=posix", f"--sparse-version={layout}"]
    for shard in tars(path):
        unpacked = tmp_path / shard.stem
        unpacked.mkdir()
        subprocess.run(["tar", "-xf", shard, "-C", unpacked], check=True)
        for image in unpacked.glob("*.jpg"):
            with image.open("r+b") as file:  # what follows a JPEG's end is no part of it
                file.truncate(2**20)
                file.seek(2**20 - 100)
                file.write(b"end")
        files = sorted(each.name for each in unpacked.iterdir())
        subprocess.run(["tar", "--sparse", *form, "-cf", shard, "-C", unpacked, *files], check=True)
        assert shard.stat().st_size < 2**20
    folder = ShardFolder.open(seal(path), "train")
    expected = list(read_shards(({"url": str(tar)} for tar in folder.paths), folder, SkipLog(BadSampleLimits())))
    with RecordReader(folder, SkipLog(BadSampleLimits())) as reader:
        numbers = [(0, 0), (0, 1), (1, 0)]
        found = [record for record in (reader.read(*number) for number in numbers) if record is not None]
    assert len(found) == 3 and [record.data for record in found] == [record.data for record in expected]
    assert all(len(record.data[0]) == 2**20 for record in found)
    assert [row.fields for record in found for row in record.rows] == [r.fields for e in expected for r in e.rows]
