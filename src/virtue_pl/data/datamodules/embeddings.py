"""Stored embeddings as contrastive batches, for training a loss alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from virtue_pl.types import Collator, EmbeddingBatch, PairIds, VirtueError


class EmbeddingBatches(Dataset[EmbeddingBatch]):
    """Batches of `batch_size` of the pairs at `indices`, in that order.

    Example:
        >>> tensors = EmbeddingBatch.from_tensors(load_file("embeddings.safetensors"))  # doctest: +SKIP
        >>> len(EmbeddingBatches(tensors, torch.arange(100), batch_size=32))  # doctest: +SKIP
        4
    """

    def __init__(self, tensors: EmbeddingBatch, indices: torch.Tensor, batch_size: int) -> None:
        self.tensors = tensors
        self.batches = indices.split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> EmbeddingBatch:
        chosen = self.batches[number]
        stored, ids = self.tensors, self.tensors.ids
        row_of_pair = torch.full((len(stored),), -1).scatter(0, chosen, torch.arange(len(chosen)))
        rows = row_of_pair[ids.negative_rows]
        own = rows >= 0
        image_ids = ids.image_ids[chosen] if len(ids.image_ids) else ids.image_ids
        chosen_ids = PairIds(ids.query_ids[chosen], ids.target_ids[chosen], ids.negative_ids[own], rows[own], image_ids)
        return EmbeddingBatch(stored.queries[chosen], stored.targets[chosen], stored.negatives[own], chosen_ids)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        return (self[number] for number in range(len(self)))


class EmbeddingDataModule(LightningDataModule):
    """Embeddings written by `predict` with an `EmbeddingWriter`, split into training and validation pairs.

    Args:
        path: safetensors, with the names of `EmbeddingBatch.to_tensors`.
        batch_size: pairs of a batch.
        validation_share: share of the pairs held out.
        seed: of the split and of each epoch's order.

    Example:
        >>> EmbeddingDataModule("embeddings.safetensors", batch_size=64).validation_share
        0.2
    """

    def __init__(self, path: str, batch_size: int, validation_share: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.path = path
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.seed = seed

    def connect(self, collator: Collator) -> None:
        """Do nothing: embeddings need no preparation."""

    def setup(self, stage: str) -> None:
        """Read the file and split its pairs. Raises VirtueError where it is missing or damaged."""
        if not Path(self.path).is_file():
            raise VirtueError(
                f"embeddings: {self.path} is not there; write it with `lightning predict`, or change data.path"
            )
        try:
            self.tensors = EmbeddingBatch.from_tensors(load_file(self.path))
        except (OSError, SafetensorError, KeyError) as error:
            raise VirtueError(
                f"embeddings: {self.path} holds none ({error}); write it again with `lightning predict`, or change"
                " data.path"
            ) from error
        order = torch.randperm(len(self.tensors), generator=torch.Generator().manual_seed(self.seed))
        held_out = max(1, int(len(order) * self.validation_share))
        self.validation, self.training = order[:held_out], order[held_out:]

    def loader(self, indices: torch.Tensor) -> DataLoader[Any]:
        """Return a loader over the pairs at `indices`, in that order."""
        return DataLoader(EmbeddingBatches(self.tensors, indices, self.batch_size), batch_size=None)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training pairs in this epoch's order."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        shuffle = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(self.seed + 1 + epoch))
        return self.loader(self.training[shuffle])

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the pairs held out."""
        return self.loader(self.validation)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the pairs held out."""
        return self.loader(self.validation)

    def describe(self) -> list[dict[str, Any]]:
        """Return one entry for each split, for `virtue-pl check`."""
        self.setup("fit")
        return [
            {"split": name, "samples": len(part)} for name, part in (("train", self.training), ("val", self.validation))
        ]
