"""The file of one shard's stored features, written image by image: only what is being added is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from torch import Tensor

from virtue_pl.types import replace_whole

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
"""Names of the stored dtypes in a safetensors header."""
ALIGNMENT = 8
"""A safetensors header is filled up with spaces to a multiple of so many bytes."""
COPIED_BYTES = 1 << 20
"""Bytes that are in memory at a time while the tensors are put in order."""


@dataclass(frozen=True)
class StoredTensor:
    """The dtype and shape of a tensor, and the range of its bytes in the file of tensors in the order of arrival.

    Example:
        >>> StoredTensor("F16", (4, 8), start=0, size=64).size
        64
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class FeatureFileWriter:
    """A writer of a safetensors file whose tensors come one after the other.

    They wait in a file without a name beside `path`, which is gone with the process whatever stops it. `save` puts
    them in the order in which safetensors itself writes them, under a temporary name that is then replaced.

    Args:
        path: the file to write.

    Example:
        >>> writer = FeatureFileWriter(Path("shards/features/train-0000.safetensors"))  # doctest: +SKIP
        >>> writer.add("0a1b", {"vision/0": torch.zeros(4, 8)})  # doctest: +SKIP
        >>> writer.save({"format": "virtue_pl features 1"})  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.images: set[str] = set()
        self._tensors: dict[str, StoredTensor] = {}
        self._waiting: BinaryIO = TemporaryFile(dir=path.parent)  # closed by `close`  # type: ignore

    def add(self, key: str, named: Mapping[str, Tensor]) -> None:
        """Add an image's tensors by STREAM/LEVEL under its content key; one that was added before is replaced."""
        for name in [name for name in self._tensors if key in self.images and name.startswith(f"{key}/")]:
            del self._tensors[name]
        self.images.add(key)
        for name, tensor in named.items():
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            start = self._waiting.seek(0, os.SEEK_END)
            self._waiting.write(data.data)
            self._tensors[f"{key}/{name}"] = StoredTensor(TYPES[tensor.dtype], tuple(tensor.shape), start, data.nbytes)

    def save(self, metadata: Mapping[str, str]) -> None:
        """Write the file, with `metadata` in its header, and give the writer up."""
        ordered = dict(sorted(self._tensors.items()))
        try:
            with replace_whole(self.path) as temporary, temporary.open("wb") as file:
                file.write(header(ordered, metadata))
                for tensor in ordered.values():
                    self._copy(tensor, file)
        finally:
            self.close()

    def _copy(self, tensor: StoredTensor, file: BinaryIO) -> None:
        self._waiting.seek(tensor.start)
        for done in range(0, tensor.size, COPIED_BYTES):
            file.write(self._waiting.read(min(COPIED_BYTES, tensor.size - done)))

    def close(self) -> None:
        """Give up what was added and not written."""
        self._waiting.close()


def header(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a safetensors file, up to its tensors, which follow in the order given."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size
        content[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
