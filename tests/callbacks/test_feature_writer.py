"""Features of images on their way to disk: a batch in memory, whole shards on disk, and nothing of a stopped run."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from virtue_pl.callbacks import feature_writer
from virtue_pl.callbacks.feature_writer import FeatureWriter
from virtue_pl.features.store import (
    FeatureIndex,
    FeatureProvenance,
    StoredFeatures,
    features_path,
    read_metadata,
    to_named_tensors,
    write_features,
)
from virtue_pl.types import ImageBatch, ImageFeatures, ShardImageBatch

TRAINER: Any = SimpleNamespace(
    predict_loop=SimpleNamespace(), strategy=SimpleNamespace(barrier=lambda: None), precision="32-true"
)
MODEL: Any = SimpleNamespace(collator=SimpleNamespace(fingerprints={"vision": "a"}))
SHARDS = {f"shard-{number}.tar": [f"key {number} {image}" for image in range(5)] for number in range(3)}


def features(key: str) -> ImageFeatures:
    torch.manual_seed(sum(map(ord, key)))
    return ImageFeatures(vision=(torch.randn(4, 8), torch.randn(2, 8)))


def started(folder: Path) -> FeatureWriter:
    writer = FeatureWriter(dtype="float32")
    writer.on_predict_start(TRAINER, MODEL)
    return writer


def step(writer: FeatureWriter, folder: Path, shard: str, keys: list[str], last: bool) -> None:
    batch = ShardImageBatch(str(folder), "b", shard, tuple(keys), ImageBatch(()), last)
    writer.on_predict_batch_end(TRAINER, MODEL, [features(key) for key in keys], batch, 0)


def tensors_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_shards_of_several_workers_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their batches come in turns; the files are those of all images at once."""
    named: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def count(*arguments: Any) -> dict[str, torch.Tensor]:
        found = to_named_tensors(*arguments)
        for tensor in found.values():
            named.add(tensor)
        return found

    monkeypatch.setattr(feature_writer, "to_named_tensors", count)
    writer = started(tmp_path)
    for start in (0, 2, 4):
        for shard, keys in SHARDS.items():
            step(writer, tmp_path, shard, keys[start : start + 2], last=start == 4)
            assert len(named) == 0
            there = {path.name for path in (tmp_path / "features").iterdir()}
            assert there <= {f"{Path(name).stem}.safetensors" for name in SHARDS} and (start == 4) == bool(there)
    writer.teardown(TRAINER, MODEL, "predict")
    making = FeatureProvenance("float32", {"vision": "a"}, "b", "32-true")
    for shard, keys in SHARDS.items():
        found, whole = features_path(tmp_path / "features", shard), features_path(tmp_path / "whole", shard)
        write_features(whole, {key: to_named_tensors(features(key), "float32") for key in keys}, making, 0.0)
        assert tensors_of(found) == tensors_of(whole)
        assert read_metadata(found)[:2] == read_metadata(whole)[:2] == (making, 5)
        for key in keys:
            stored = StoredFeatures(tmp_path / "features", ["vision"]).read(shard, key).vision
            assert all(map(torch.equal, stored, features(key).vision))
    assert FeatureIndex.read(tmp_path / "features").images == 15


@pytest.mark.parametrize("end", ["exception", "teardown"])
def test_a_stopped_run_leaves_whole_shards_alone(tmp_path: Path, end: str) -> None:
    writer = started(tmp_path)
    first, second, _ = SHARDS
    step(writer, tmp_path, second, SHARDS[second][:2], last=False)
    step(writer, tmp_path, first, SHARDS[first], last=True)
    if end == "exception":
        writer.on_exception(TRAINER, MODEL, KeyboardInterrupt())
    else:
        writer.teardown(TRAINER, MODEL, "predict")
    assert writer.started == {}
    assert {path.name for path in (tmp_path / "features").glob("*.safetensors")} == {"shard-0.safetensors"}
    assert not list((tmp_path / "features").glob(".*"))
    again = started(tmp_path)
    step(again, tmp_path, first, [], last=True)
    for start in (0, 3):
        step(again, tmp_path, second, SHARDS[second][start : start + 3], last=start == 3)
    again.teardown(TRAINER, MODEL, "predict")
    assert FeatureIndex.read(tmp_path / "features").images == 10
