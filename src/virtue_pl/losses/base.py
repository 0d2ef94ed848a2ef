"""The interface of losses on embeddings; a loss is also a root that learns from stored embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.ranks import collectives
from virtue_pl.types import Collator, EmbeddingBatch, ImageBatch


class LossOutput(NamedTuple):
    """The loss of this rank's queries, and metrics to log by name.

    Example:
        >>> LossOutput(torch.tensor(0.5), {"temperature": torch.tensor(0.02)}).loss
        tensor(0.5000)
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class PassThroughCollator:
    """The collator of a loss that runs alone: stored embeddings are batches already.

    Example:
        >>> PassThroughCollator().collate_train(["a", "b"])
        ['a', 'b']
    """

    def collate_train(self, samples: Any) -> Any:
        """Return the batch as it is."""
        return samples

    def collate_eval(self, samples: Any) -> Any:
        """Return the batch as it is."""
        return samples

    def collate_images(self, images: Any) -> ImageBatch:
        """Return no images."""
        return ImageBatch()

    @property
    def fingerprints(self) -> dict[str, str]:
        """No streams, since there are no images."""
        return {}


class EmbeddingLoss(VirtueModule):
    """A loss on a batch of embeddings; its mean over ranks is the loss of the global batch.

    Example:
        >>> from virtue_pl.losses import InfoNCELoss
        >>> from virtue_pl.types import PairIds
        >>> pairs = PairIds(torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> batch = EmbeddingBatch(torch.eye(2), torch.eye(2), torch.zeros(0, 2), pairs)
        >>> InfoNCELoss(temperature=1.0)(batch).loss
        tensor(0.3133)
    """

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        """Return the loss of this rank's queries, computed in float32 whatever the run's precision."""
        with torch.autocast(batch.queries.device.type, enabled=False):
            return self.compute_loss(batch)

    @abstractmethod
    def compute_loss(self, batch: EmbeddingBatch) -> LossOutput:
        """Return the loss of this rank's queries, and metrics to log; autocast is off."""

    @abstractmethod
    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Return stored embeddings after the map that the loss trains when it runs alone."""

    def ranking_loss(self, scores: Sequence[Float[Tensor, " candidates"]]) -> Float[Tensor, ""] | None:
        """Return the loss of queries that each have candidates of their own, as validation has them.

        scores: each query's cosines with its candidates, the right one first. None where a loss has no such form.
        """
        return None

    @property
    def needs_negatives(self) -> str | None:
        """The setting, in words, that needs hard negatives in the data; None where no setting does."""
        return None

    def training_step(self, batch: EmbeddingBatch, batch_idx: int) -> Tensor:
        """Log the loss and the metrics of a batch of stored embeddings, and return the loss."""
        return self.log_step("train", batch)

    def validation_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        """Log the loss and the metrics of a batch of stored embeddings."""
        self.log_step("val", batch)

    def test_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        """Log the loss and the metrics of a batch of stored embeddings."""
        self.log_step("test", batch)

    def log_step(self, stage: str, batch: EmbeddingBatch) -> Tensor:
        """Log the loss and the metrics as STAGE/NAME, and return the loss.

        Only in training do ranks have different pairs, and compare them: those held out are few, and each has them all.
        """
        with nullcontext() if stage == "train" else collectives.alone():
            output = self(self.adapt(batch))
        for name, value in {"loss": output.loss, **output.metrics}.items():
            if stage == "train":
                self.log(f"train/{name}", value, batch_size=len(batch), prog_bar=name == "loss")
            else:
                self.average(f"{stage}/{name}", value, len(batch), prog_bar=name == "loss")
        return output.loss

    @property
    def collator(self) -> Collator:
        """The collator of stored embeddings, which are batches already."""
        return PassThroughCollator()
