"""Stored embeddings: what is read back is what was written, by the same model, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer

from virtue_pl.evaluation.evaluator import Evaluator, FlushEmbeddings
from virtue_pl.evaluation.retrieval.embedding_store import EmbeddingStore
from virtue_pl.types import VirtueError


def part_of(folder: Path, fingerprint: str, value: float) -> Path:
    store = EmbeddingStore(folder, fingerprint)
    store.add(["a", "b"], torch.full((2, 4), value))
    store.flush()
    (path,) = (folder / fingerprint).glob("part-*")
    return path


def test_a_part_is_not_believed_by_its_folder(tmp_path: Path) -> None:
    path, other = part_of(tmp_path, "model", 1.0), part_of(tmp_path, "another", 2.0)
    whole = path.read_bytes()
    assert EmbeddingStore(tmp_path, "model").get(["b"]).tolist() == [[1.0] * 4]
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content in (whole[:-4], other.read_bytes(), bytes(changed), whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(VirtueError, match=r"store: .* holds no embeddings .*: delete it") as caught:
            EmbeddingStore(tmp_path, "model")
        assert "\n" not in str(caught.value)


def test_a_damaged_part_is_told_while_the_store_opens(tmp_path: Path) -> None:
    """A writer that is interrupted before its store is open lets the interruption through, and hides nothing."""
    evaluator = Evaluator("runs/mini", tmp_path)
    evaluator.embedder = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    FlushEmbeddings().on_exception(Trainer(logger=False, accelerator="cpu"), evaluator, VirtueError("a part is cut"))
