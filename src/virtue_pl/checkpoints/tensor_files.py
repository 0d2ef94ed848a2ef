"""Tensors of a folder's weight files: safetensors or `.bin`, in one file or in shards. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from virtue_pl.types import VirtueError

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors of the first of these files that is in the folder; an index names its shards. Raises VirtueError
    where there is none.
    """
    for name in names:
        if (folder / name).is_file():
            return read_shards(folder / name) if name.endswith(".index.json") else read_file(folder / name)
    raise VirtueError(f"{folder} has no weights, expected one of {', '.join(names)}")


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, each from its own shard beside it. Raises VirtueError where a shard holds others
    than the index says.
    """
    places: dict[str, str] = read_json(index)["weight_map"]
    found: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise VirtueError(f"{index} names the shard {shard!r}, expected a file beside it")
        tensors = read_file(index.parent / shard)
        listed = {name for name, place in places.items() if place == shard}
        if tensors.keys() != listed:
            raise VirtueError(
                f"{index.parent / shard} and {index.name} disagree on {min(tensors.keys() ^ listed)}, expected the same"
                " tensors in both"
            )
        found |= tensors
    return found


def read_file(path: Path) -> dict[str, Tensor]:
    """One file's tensors by name."""
    found = read_checked(path, load_file) if path.suffix == ".safetensors" else load_pickled(path)
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise VirtueError(f"{path}: {name!r} is a {type(value).__name__}, expected tensors by name")
    return found


def load_pickled(path: Path) -> Any:
    """What a `.bin`, `.pt` or `.pth` file holds: tensors and plain values. Raises VirtueError for anything else, which
    is not run.
    """
    return read_checked(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_checked(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise VirtueError(f"{path} is not there, expected a file of weights")
    try:
        return read(path)
    except UnpicklingError as error:
        raise VirtueError(
            f"{path} is no file of weights, or holds more than tensors and plain values, and is not read: convert it to"
            " safetensors where you trust it"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise VirtueError(f"{path} is damaged or no file of weights: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises VirtueError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VirtueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise VirtueError(f"{path} holds a {type(content).__name__}, expected an object of settings")
    return content
