"""A file of weights that is cut, empty, of another kind or hostile is one line by every reader, and nothing runs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from virtue_pl.backbones.class_names import load_classifier
from virtue_pl.backbones.segmentation.sam1 import load_sam1
from virtue_pl.backbones.segmentation.sam2_weights import read_sam2
from virtue_pl.backbones.timm_trunk import load_trunk_weights
from virtue_pl.checkpoints.tensor_files import read_file
from virtue_pl.engine.module import load_weights, read_weights
from virtue_pl.engine.weight_files import load_pickled, load_safetensors
from virtue_pl.types import VirtueError

NETWORK = nn.Linear(4, 3)
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "part": (".safetensors", lambda path: load_weights(NETWORK, path, "")),
    "part of a checkpoint": (".ckpt", lambda path: load_weights(NETWORK, path, "")),
    "classifier": (".safetensors", lambda path: load_classifier(NETWORK, path)),
    "trunk": (".safetensors", lambda path: load_trunk_weights(NETWORK, path)),
    "SAM": (".pth", lambda path: load_sam1({"image_encoder.": NETWORK}, path)),
    "SAM 2": (".pt", lambda path: read_sam2(str(path))),
    "release": (".safetensors", read_file),
    "release of torch": (".bin", read_file),
    "pickled": (".pt", load_pickled),
    "safetensors": (".safetensors", load_safetensors),
}


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("runs_when_unpickled"),))


def whole(suffix: str) -> bytes:
    if suffix == ".safetensors":
        return save(NETWORK.state_dict())
    buffer = io.BytesIO()
    torch.save({"state_dict": NETWORK.state_dict()}, buffer)
    return buffer.getvalue()


def damages(suffix: str) -> Iterator[tuple[str, bytes]]:
    """Every way to damage a file: cut at a sweep of lengths, of another kind, or with code in it."""
    data = whole(suffix)
    for length in sorted({0, 1, 7, 8, 9, len(data) - 1, *range(0, len(data), len(data) // 10)}):
        yield f"cut at {length}", data[:length]
    yield "a text", b"no weights\n" * 100
    yield "zeros", bytes(len(data))
    if suffix != ".safetensors":
        buffer = io.BytesIO()
        torch.save({"state_dict": {"weight": Hostile()}, "model": Hostile()}, buffer)
        yield "hostile", buffer.getvalue()
        yield "hostile pickle", pickle.dumps(Hostile(), protocol=2)


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_one_line(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, read = READERS[reader]
    path = tmp_path / f"file{suffix}"
    for what, data in damages(suffix):
        path.write_bytes(data)
        with pytest.raises(VirtueError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), what
    assert not (tmp_path / "runs_when_unpickled").exists()


@pytest.mark.parametrize("content", [[1, 2], 3, {"state_dict": [1]}, {"a": 1}], ids=str)
def test_a_checkpoint_without_tensors_by_name_is_one_line(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(VirtueError, match=r"x\.ckpt holds no tensors by name, expected a checkpoint \(\.ckpt\)"):
        read_weights(tmp_path / "x.ckpt")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    for suffix in (".ckpt", ".safetensors"):
        (tmp_path / f"x{suffix}").write_bytes(whole(suffix))
        load_weights(NETWORK, tmp_path / f"x{suffix}", "")
