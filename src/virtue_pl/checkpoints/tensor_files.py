"""Reading a folder's weight files: safetensors or `.bin`, in one file or in shards. Objects are never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from virtue_pl.engine.weight_files import load_pickled, load_safetensors
from virtue_pl.types import VirtueError

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return all tensors of the first of the named files that is in the folder; an index names its shards.

    Raises VirtueError where there is none.
    """
    for name in names:
        if (folder / name).is_file():
            return read_shards(folder / name) if name.endswith(".index.json") else read_file(folder / name)
    raise VirtueError(f"{folder} has no weights, expected one of {', '.join(names)}")


def read_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors that an index lists, each from its own shard beside it.

    Raises VirtueError where a shard holds others than the index lists.
    """
    shard_of: dict[str, str] = read_json(index).get("weight_map", {})
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise VirtueError(f"{index} has no weight_map, expected the file of each tensor by its name")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise VirtueError(f"{index} names the shard {shard!r}, expected a file beside it")
        tensors = read_file(index.parent / shard)
        listed = {name for name, file in shard_of.items() if file == shard}
        if tensors.keys() != listed:
            raise VirtueError(
                f"{index.parent / shard} and {index.name} disagree on {min(tensors.keys() ^ listed)}, expected the same"
                " tensors in both"
            )
        found |= tensors
    return found


def read_file(path: Path) -> dict[str, Tensor]:
    """Return one file's tensors by name. Raises VirtueError for anything else in it."""
    found = load_safetensors(path) if path.suffix == ".safetensors" else load_pickled(path)
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise VirtueError(f"{path}: {name!r} is a {type(value).__name__}, expected tensors by name")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object. Raises VirtueError, which names the file, for any other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VirtueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise VirtueError(f"{path} holds a {type(content).__name__}, expected an object of settings")
    return content
