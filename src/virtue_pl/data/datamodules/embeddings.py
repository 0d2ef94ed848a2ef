"""Stored embeddings as contrastive batches, for training a loss alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import Dataset

from virtue_pl.data.streaming.options import check_counts
from virtue_pl.types import Collator, EmbeddingBatch, PairIds, VirtueError
from virtue_pl.types.fingerprints import hash_values


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


class EmbeddingLoader:
    """Batches of pairs: in another order in each epoch, the same in every process for the same seed and epoch.

    With several ranks a step's pairs are dealt to them in turn: each has `batch_size` pairs of its own, equally many in
    the last step too, which leaves out fewer than `world_size` pairs.

    Args:
        tensors: all pairs.
        indices: which of them to read.
        batch_size: pairs of a batch, of each rank.
        seed: of the orders; None for that of `indices` in every epoch.
        epoch: called at the start of every pass.
        rank, world_size: which rank is read for, and of how many.

    Example:
        >>> tensors = EmbeddingBatch.from_tensors(load_file("embeddings.safetensors"))  # doctest: +SKIP
        >>> loader = EmbeddingLoader(tensors, torch.arange(100), 32, seed=0, epoch=lambda: 3)  # doctest: +SKIP
        >>> len(loader)  # doctest: +SKIP
        4
    """

    def __init__(
        self,
        tensors: EmbeddingBatch,
        indices: torch.Tensor,
        batch_size: int,
        seed: int | None,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tensors = tensors
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.batches_read = 0
        self._resume_at = 0

    def __len__(self) -> int:
        return -(-(len(self.indices) // self.world_size) // self.batch_size)

    def order(self, epoch: int) -> torch.Tensor:
        """Return this rank's pairs in the order of an epoch."""
        order = self.indices
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + 1 + epoch)
            order = order[torch.randperm(len(order), generator=generator)]
        return order[self.rank :: self.world_size][: len(order) // self.world_size]

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        batches = EmbeddingBatches(self.tensors, self.order(self.epoch()), self.batch_size)
        first, self._resume_at = self._resume_at, 0
        for number in range(first, len(batches)):
            self.batches_read = number + 1
            yield batches[number]

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches read in this pass."""
        return {"taken": self.batches_read}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin behind the batches that were read; a pass that was whole begins anew."""
        self._resume_at = state_dict["taken"] % len(self)


class EmbeddingDataModule(LightningDataModule):
    """Embeddings written by `predict` with an `EmbeddingWriter`, split into training and validation pairs.

    Args:
        path: safetensors, with the names of `EmbeddingBatch.to_tensors`.
        batch_size: pairs of a batch, of each rank.
        validation_share: share of the pairs held out, at least one pair; 0 holds out none, and nothing is validated on.
        seed: of the split and of each epoch's order, which is another in every epoch.

    Example:
        >>> EmbeddingDataModule("embeddings.safetensors", batch_size=64).validation_share
        0.2
    """

    def __init__(self, path: str, batch_size: int, validation_share: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        check_counts({"batch_size": batch_size})
        if not 0 <= validation_share < 1:
            raise VirtueError(f"validation_share is {validation_share}, expected 0 or more, and less than 1")
        self.path = path
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.seed = seed

    def connect(self, collator: Collator) -> None:
        """Do nothing: embeddings need no preparation."""

    def setup(self, stage: str) -> None:
        """Read the file and split its pairs.

        Raises VirtueError where it is missing or damaged, or holds too few pairs.
        """
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
        held_out = max(1, int(len(order) * self.validation_share)) if self.validation_share else 0
        self.validation, self.training = order[:held_out], order[held_out:]
        if len(self.training) < self.world_size:
            raise VirtueError(
                f"embeddings: {self.path} holds {len(order)} pairs, of which {held_out} are held out: expected at least"
                f" {self.world_size} to train on, store more, or lower validation_share"
            )

    def training_rows(self) -> dict[str, str]:
        """Return the training pairs and the order in which they come, in words."""
        pairs, order = hash_values(self.tensors.ids.query_ids.tolist()), hash_values(self.seed, self.training.tolist())
        return {"": f"{len(self.training)} of pairs {pairs[:8]} in order {order[:8]}"}

    @property
    def world_size(self) -> int:
        """Return the number of ranks; 1 without a trainer."""
        return self.trainer.world_size if self.trainer is not None else 1

    def current_epoch(self) -> int:
        """Return the trainer's epoch; 0 without a trainer."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def loader(self, indices: torch.Tensor, seed: int | None) -> EmbeddingLoader:
        """Return a loader of the pairs at `indices`: all in their order, or with a seed this rank's share."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        of_ranks = (rank, self.world_size) if seed is not None else (0, 1)
        return EmbeddingLoader(self.tensors, indices, self.batch_size, seed, self.current_epoch, *of_ranks)

    def train_dataloader(self) -> EmbeddingLoader:
        """Return the training pairs, in each epoch in an order of its own."""
        return self.loader(self.training, self.seed)

    def val_dataloader(self) -> EmbeddingLoader | list[Any]:
        """Return the pairs held out, all of them on each rank; an empty list where there are none."""
        return self.loader(self.validation, None) if len(self.validation) else []

    def test_dataloader(self) -> EmbeddingLoader | list[Any]:
        """Return the pairs held out; an empty list where there are none."""
        return self.val_dataloader()

    def describe(self) -> list[dict[str, Any]]:
        """Return one entry for each split, for `virtue-pl check`."""
        self.setup("fit")
        return [
            {"split": name, "samples": len(part)} for name, part in (("train", self.training), ("val", self.validation))
        ]
