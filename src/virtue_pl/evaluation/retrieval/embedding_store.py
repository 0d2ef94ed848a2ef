"""Embeddings on disk by content key: an interrupted evaluation resumes, a repeated one only ranks.

They lie in STORE/FINGERPRINT/part-*.safetensors, where the fingerprint is that of the model and its use; each part has
a tensor `embeddings` and its rows' content keys. Parts are written whole and then renamed, so that several processes
and several evaluations may add at the same time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from virtue_pl.types import VirtueError, replace_whole

ROWS_A_PART, SECONDS_A_PART = 4096, 20.0
"""Rows and seconds after which a part is written: the most that a killed process loses."""


class EmbeddingStore:
    """Embeddings of one model, used in one way.

    Raises VirtueError for a file in the folder that holds no embeddings.

    Args:
        folder: folder of all models' embeddings.
        fingerprint: hash of the model and of its use.

    Example:
        >>> store = EmbeddingStore("runs/embeddings", "0a1b")
        >>> store.add(["caption"], torch.ones(1, 4))
        >>> store.flush()
        >>> store.get(["caption"]).shape
        torch.Size([1, 4])
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(folder) / fingerprint[:24]
        self.num_added = 0
        self._rows: dict[str, tuple[int, int]] = {}
        self._parts: list[Float[Tensor, "rows dim"]] = []
        self._read: set[str] = set()
        self._buffer: list[tuple[tuple[str, ...], Float[Tensor, "rows dim"]]] = []
        self._written = time.monotonic()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Read the parts that other processes have written meanwhile."""
        for path in sorted(self.folder.glob("part-*.safetensors")):
            if path.name not in self._read:
                self._register(path.name, *read_part(path))

    def add(self, keys: Sequence[str], embeddings: Float[Tensor, "rows dim"]) -> None:
        """Add embeddings, and write a part once there are enough of them, or enough seconds have passed."""
        self._buffer.append((tuple(keys), embeddings.detach().float().cpu()))
        self.num_added += len(keys)
        if (
            sum(len(keys) for keys, _ in self._buffer) >= ROWS_A_PART
            or time.monotonic() - self._written >= SECONDS_A_PART
        ):
            self.flush()

    def flush(self) -> None:
        """Write the embeddings that were added since the last part."""
        if not self._buffer:
            return
        keys = [key for of_batch, _ in self._buffer for key in of_batch]
        embeddings = torch.cat([rows for _, rows in self._buffer])
        name = f"part-{uuid4().hex}.safetensors"
        metadata = {"keys": json.dumps(keys), "model": self.folder.name, "sha256": checksum(embeddings)}
        with replace_whole(self.folder / name) as temporary:
            save_file({"embeddings": embeddings}, temporary, metadata)
        self._register(name, keys, embeddings)
        self._buffer, self._written = [], time.monotonic()

    def get(self, keys: Sequence[str]) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of the keys, in order. Raises KeyError for one that is not stored."""
        part_rows = torch.tensor([self._rows[key] for key in keys], dtype=torch.long).reshape(-1, 2)
        found = torch.zeros(len(keys), self._parts[0].shape[1] if self._parts else 0)
        for part in part_rows[:, 0].unique().tolist():
            mine = part_rows[:, 0] == part
            found[mine] = self._parts[part][part_rows[mine, 1]]
        return found

    def _register(self, name: str, keys: Sequence[str], embeddings: Float[Tensor, "rows dim"]) -> None:
        self._read.add(name)
        self._rows |= {key: (len(self._parts), row) for row, key in enumerate(keys)}
        self._parts.append(embeddings)


class ModelStore:
    """Embeddings of a model, those of texts apart from those of inputs with images.

    Texts' embeddings are the same for every query format, so that all baselines share them.

    Args:
        folder: folder of all models' embeddings.
        texts, with_images: fingerprints of all that the embeddings of each kind depend on.

    Example:
        >>> store = ModelStore("runs/embeddings", texts="0a", with_images="1b")
        >>> store.add(["a text"], torch.ones(1, 4), with_images=False)
        >>> store.num_added
        1
    """

    def __init__(self, folder: str | Path, texts: str, with_images: str) -> None:
        self.texts = EmbeddingStore(folder, texts)
        self.with_images = EmbeddingStore(folder, with_images)

    @property
    def num_added(self) -> int:
        """Number of embeddings added since the store was opened."""
        return self.texts.num_added + self.with_images.num_added

    def __contains__(self, key: str) -> bool:
        return key in self.texts or key in self.with_images

    def add(self, keys: Sequence[str], embeddings: Float[Tensor, "rows dim"], with_images: bool) -> None:
        """Add embeddings of texts, or of inputs with images."""
        (self.with_images if with_images else self.texts).add(keys, embeddings)

    def flush(self) -> None:
        """Write the embeddings that were added since the last parts."""
        self.texts.flush()
        self.with_images.flush()

    def refresh(self) -> None:
        """Read the parts that other processes have written meanwhile."""
        self.texts.refresh()
        self.with_images.refresh()

    def get(self, keys: Sequence[str]) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of the keys, in order. Raises KeyError for one that is not stored."""
        texts = torch.tensor([key in self.texts for key in keys], dtype=torch.bool)
        parts = [(chosen, store) for chosen, store in ((texts, self.texts), (~texts, self.with_images)) if chosen.any()]
        found = [
            (chosen, store.get([keys[index] for index in chosen.nonzero().flatten().tolist()]))
            for chosen, store in parts
        ]
        together = torch.zeros(len(keys), found[0][1].shape[1] if found else 0)
        for chosen, rows in found:
            together[chosen] = rows
        return together


def read_part(path: Path) -> tuple[list[str], Float[Tensor, "rows dim"]]:
    """Read keys and embeddings of a part.

    Raises VirtueError for a file that is none, is of another model than its folder, or has other content than was
    written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            keys, embeddings = json.loads(metadata["keys"]), file.get_tensor("embeddings")
        if len(keys) != len(embeddings):
            raise ValueError(f"{len(keys)} keys for {len(embeddings)} rows")
        if metadata.get("model", path.parent.name) != path.parent.name:
            raise ValueError(f"it is of the model {metadata['model']}")
        if "sha256" in metadata and metadata["sha256"] != checksum(embeddings):
            raise ValueError("its content has changed")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise VirtueError(f"store: {path} holds no embeddings ({error}): delete it, they are computed again") from error
    return keys, embeddings


def checksum(embeddings: Float[Tensor, "rows dim"]) -> str:
    """Return the SHA-256 of embeddings."""
    return hashlib.sha256(embeddings.contiguous().numpy().tobytes()).hexdigest()
