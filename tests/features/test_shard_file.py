"""A shard's features, written as they come: safetensors' own bytes, nothing held, nothing left over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from virtue_pl.features.shard_file import FeatureFileWriter


def features(dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Two streams of several levels, some named beyond one digit, of images in no order; one tensor is empty."""
    torch.manual_seed(0)
    named = {
        key: {f"{stream}/{level}": torch.randn(2, 3 + level).to(dtype) for stream in "sv" for level in (0, 2, 10)}
        for key in ("b", "ü", "a", "a/")
    }
    named["b"]["v/1"] = torch.zeros(0, 4, dtype=dtype)
    return named


def split(path: Path) -> tuple[dict[str, str], dict[str, object], int, bytes]:
    """The metadata, the entries in their order, the length of the header, and the tensors' bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header.pop("__metadata__"), dict(header), length, data[8 + length :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_file_is_the_one_that_safetensors_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    """All bytes but the order of the metadata, which safetensors leaves to chance."""
    metadata = {"format": "a", "making": '{"of": "ü"}', "pictures": "4"}
    writer = FeatureFileWriter(tmp_path / "new.safetensors")
    for key, named in features(dtype).items():
        writer.add(key, named)
    writer.save(metadata)
    flat = {f"{key}/{name}": tensor for key, named in features(dtype).items() for name, tensor in named.items()}
    save_file(flat, tmp_path / "old.safetensors", metadata)
    (found, *rest), (expected, *others) = split(tmp_path / "new.safetensors"), split(tmp_path / "old.safetensors")
    assert found == expected == metadata
    assert rest == others and list(rest[0]) == list(others[0])
    loaded = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in flat.items())


def test_an_image_that_comes_again_is_replaced_and_a_shard_without_images_is_a_file(tmp_path: Path) -> None:
    writer = FeatureFileWriter(tmp_path / "a.safetensors")
    writer.add("a", {"v/0": torch.zeros(2), "v/1": torch.zeros(2)})
    writer.add("a", {"v/0": torch.ones(3)})
    writer.save({})
    assert load_file(tmp_path / "a.safetensors")["a/v/0"].tolist() == [1, 1, 1]
    assert len(load_file(tmp_path / "a.safetensors")) == 1
    FeatureFileWriter(tmp_path / "b.safetensors").save({"format": "a"})
    assert load_file(tmp_path / "b.safetensors") == {}


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "a.safetensors"
    writer = FeatureFileWriter(path)
    writer.add("a", {"v/0": torch.zeros(2)})
    assert list(path.parent.iterdir()) == []
    writer.close()
    assert list(path.parent.iterdir()) == []
    broken = FeatureFileWriter(path)
    broken.add("a", {"v/0": torch.zeros(2)})
    monkeypatch.setattr(broken, "_copy", lambda tensor, file: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        broken.save({})
    assert list(path.parent.iterdir()) == []
