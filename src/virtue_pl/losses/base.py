"""What a loss on embeddings is, whatever it minimises; also a root that learns from stored embeddings."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import Collator, EmbeddingBatch, ImageBatch


class LossOutput(NamedTuple):
    """The loss of this rank's queries, and figures to log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class StoredEmbeddings:
    """What data learns from a loss that runs alone: nothing is to be prepared."""

    def collate_train(self, samples: Any) -> Any:
        return samples

    def collate_eval(self, samples: Any) -> Any:
        return samples

    def collate_images(self, images: Any) -> ImageBatch:
        return ImageBatch()

    @property
    def fingerprints(self) -> dict[str, str]:
        return {}


class EmbeddingLoss(VirtueModule):
    """A batch of embeddings to a loss. The mean over ranks of what it returns is the loss of the global batch."""

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        """In float32 whatever the run's precision."""
        with torch.autocast(batch.queries.device.type, enabled=False):
            return self.in_full_precision(batch)

    @abstractmethod
    def in_full_precision(self, batch: EmbeddingBatch) -> LossOutput:
        """The loss of this rank's queries."""

    @abstractmethod
    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Alone: the stored embeddings, as the loss trains them."""

    @property
    def needs_negatives(self) -> str | None:
        """Which setting is about a query's own hard negatives, and needs some in the data; None where none is."""
        return None

    def training_step(self, batch: EmbeddingBatch, batch_idx: int) -> Tensor:
        return self.log_step("train", batch)

    def validation_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        self.log_step("val", batch)

    def test_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        self.log_step("test", batch)

    def log_step(self, stage: str, batch: EmbeddingBatch) -> Tensor:
        output = self(self.adapt(batch))
        self.log(f"{stage}/loss", output.loss, prog_bar=True, batch_size=len(batch), sync_dist=stage != "train")
        for name, value in output.metrics.items():
            self.log(f"{stage}/{name}", value, batch_size=len(batch), sync_dist=stage != "train")
        return output.loss

    @property
    def collator(self) -> Collator:
        """Stored embeddings are batches already."""
        return StoredEmbeddings()
