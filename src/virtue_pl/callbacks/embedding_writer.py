"""`EmbeddingWriter`: the embeddings of pairs that `predict` computes, in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file

from virtue_pl.types import EmbeddingBatch, PairIds, VirtueError


class EmbeddingWriter(BasePredictionWriter):
    """Callback that collects every `EmbeddingBatch` of a `predict` run in one process and writes them to `path`.

    Args:
        path: the safetensors file; written under a temporary name and moved.

    Example:
        >>> trainer = Trainer(callbacks=[EmbeddingWriter("runs/mini/embeddings.safetensors")])  # doctest: +SKIP
        >>> trainer.predict(model, datamodule=pairs, return_predictions=True)
    """

    def __init__(self, path: str) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        if trainer.world_size > 1:
            raise VirtueError(
                f"writing embeddings wants one process, found {trainer.world_size}: set trainer.devices to 1"
            )
        save_embeddings(join(predictions), self.path)


def join(batches: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    """Return the batches one after another, with `negative_rows` counted on from batch to batch."""
    starts = torch.tensor([0] + [len(batch) for batch in batches]).cumsum(0).tolist()
    columns = {f.name: torch.cat([getattr(batch.ids, f.name) for batch in batches]) for f in fields(PairIds)}
    columns["negative_rows"] = torch.cat(
        [batch.ids.negative_rows + start for batch, start in zip(batches, starts, strict=False)]
    )
    queries, targets, negatives = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("queries", "targets", "negatives")
    )
    return EmbeddingBatch(queries, targets, negatives, PairIds(**columns))


def save_embeddings(batch: EmbeddingBatch, path: Path) -> None:
    """Write the embeddings and the pairs' ids as safetensors, under a temporary name, and move the file to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in batch.to_tensors().items()}, temporary)
    os.replace(temporary, path)
