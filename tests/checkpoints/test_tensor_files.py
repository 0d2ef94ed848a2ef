"""Files of weights that are none, or damaged: one line that names the file, whatever its reader raises."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from virtue_pl.checkpoints.tensor_files import read_file, read_shards
from virtue_pl.types import VirtueError


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.safetensors"])
def test_a_file_cut_anywhere_or_of_anything_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    whole = path.read_bytes()
    others = [b"text", b"\0" * 64, b"PK\x03\x04", b"\x80\x02", b"\x80\x02N.", b"\x80\x02]q\x00.", b"[]", b"\xff" * 9]
    for data in [*(whole[:end] for end in range(0, len(whole), max(1, len(whole) // 40))), *others]:
        path.write_bytes(data)
        with pytest.raises(VirtueError, match=name) as caught:
            read_file(path)
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", "b")
    with pytest.raises(VirtueError, match=name):
        read_file(path)


@pytest.mark.parametrize("content", [{}, [], {"weight_map": None}, {"weight_map": {}}, {"weight_map": {"a": 3}}, "x"])
def test_an_index_without_shards_is_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(VirtueError, match=r"index\.json"):
        read_shards(tmp_path / "model.safetensors.index.json")
