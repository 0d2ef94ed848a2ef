"""Reading a file of weights: it is whole and holds tensors and plain values, or one error says what it is."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from virtue_pl.types import VirtueError

DAMAGE = (
    *(AttributeError, EOFError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, struct.error),
)
"""Errors that safetensors' and torch's readers raise over files that are cut, empty or of another kind."""


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Return a safetensors file's tensors by name. Raises VirtueError where it is absent or damaged."""
    found: dict[str, Tensor] = read_checked(Path(path), load_file)
    return found


def load_pickled(path: str | Path, mmap: bool = False) -> Any:
    """Return the tensors and plain values of a `.bin`, `.pt`, `.pth` or `.ckpt` file.

    Raises VirtueError for anything else in it, which is not run, and where it is absent or damaged.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are used.
    """
    return read_checked(Path(path), lambda file: torch.load(file, map_location="cpu", weights_only=True, mmap=mmap))


def read_checked(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return the content of a file of weights. Raises VirtueError where it is absent, damaged or not allowed."""
    if not path.is_file():
        raise VirtueError(f"{path} is not there, expected a file of weights")
    try:
        return read(path)
    except UnpicklingError as error:
        raise VirtueError(
            f"{path} is no file of weights, or holds more than tensors and plain values, and is not read: convert it to"
            " safetensors where you trust it"
        ) from error
    except DAMAGE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise VirtueError(f"{path} is damaged or no file of weights: {reason}") from error


def describe_damage(path: Path) -> str:
    """Return what is wrong with a run's checkpoint; "" where it is whole, which takes reading all of it.

    A folder, in which ranks have saved their parts, is whole where the two files are there that are written last.
    """
    if path.is_dir():
        missing = [name for name in (".metadata", "meta.pt") if not (path / name).is_file()]
        return f"it lacks {missing[0]}" if missing else ""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, *DAMAGE) as error:
        return f"it is cut, empty or no checkpoint: {error}"
    return f"{damaged} in it has other bytes than were written" if damaged else ""
