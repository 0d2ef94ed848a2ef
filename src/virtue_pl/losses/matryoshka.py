"""A loss at several lengths of the embeddings at once, so that their first numbers alone are embeddings, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.base import EmbeddingLoss, LossOutput
from virtue_pl.types import EmbeddingBatch, VirtueError


class MatryoshkaLoss(EmbeddingLoss):
    """The weighted mean of a loss over the first `dims` numbers of each embedding, as unit vectors (arXiv 2205.13147).

    Args:
        loss: computed at each length.
        dims: the lengths at which embeddings are to be used, the whole one among them.
        dim_weights: the weight of each length; equal by default.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`; alone, it learns on stored embeddings, as
            `loss` would.

    Example:
        >>> from virtue_pl.losses import InfoNCELoss
        >>> from virtue_pl.types import PairIds
        >>> pairs = PairIds(torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> batch = EmbeddingBatch(torch.eye(2), torch.eye(2), torch.zeros(0, 2), pairs)
        >>> sorted(MatryoshkaLoss(InfoNCELoss(), dims=[1, 2])(batch).metrics)
        ['effective_negatives', 'in_batch_accuracy', 'loss_1', 'loss_2', 'temperature']
    """

    def __init__(
        self,
        loss: EmbeddingLoss,
        dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        if not dims or min(dims) < 1:
            raise VirtueError(f"loss.dims is {list(dims)}, expected lengths of at least 1")
        if dim_weights is not None and len(dim_weights) != len(dims):
            raise VirtueError(f"loss.dim_weights are {len(dim_weights)}, expected one for each of the {len(dims)} dims")
        if dim_weights is not None and (min(dim_weights) < 0 or not sum(dim_weights)):
            raise VirtueError(f"loss.dim_weights are {list(dim_weights)}, expected one above 0, and none below")
        self.loss = loss
        self.dims = tuple(dims)
        self.dim_weights = tuple(dim_weights or (1.0,) * len(dims))
        self.load_and_freeze()

    def compute_loss(self, batch: EmbeddingBatch) -> LossOutput:
        """Return the weighted mean of the losses, the metrics of the longest, and each length's loss."""
        if max(self.dims) > batch.queries.shape[1]:
            raise VirtueError(
                f"loss.dims holds {max(self.dims)}, but embeddings have {batch.queries.shape[1]} numbers: lower it"
            )
        outputs = [self.loss(shorten_embeddings(batch, dim)) for dim in self.dims]
        total = torch.stack(
            [weight * output.loss for weight, output in zip(self.dim_weights, outputs, strict=True)]
        ).sum() / sum(self.dim_weights)
        longest = outputs[self.dims.index(max(self.dims))]
        each = {f"loss_{dim}": output.loss.detach() for dim, output in zip(self.dims, outputs, strict=True)}
        return LossOutput(total, {**longest.metrics, **each})

    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Return stored embeddings after the map that `loss` trains."""
        return self.loss.adapt(batch)

    def ranking_loss(self, scores: Sequence[Float[Tensor, " candidates"]]) -> Float[Tensor, ""] | None:
        """Return that of `loss`, at the whole length of the embeddings."""
        return self.loss.ranking_loss(scores)

    @property
    def needs_negatives(self) -> str | None:
        """The setting of `loss` that needs hard negatives, in words."""
        return self.loss.needs_negatives


def shorten_embeddings(batch: EmbeddingBatch, dim: int) -> EmbeddingBatch:
    """Return the batch with the first `dim` numbers of each embedding, as unit vectors."""
    queries, targets, negatives = (
        normalize(part[:, :dim].float(), dim=-1) for part in (batch.queries, batch.targets, batch.negatives)
    )
    return replace(batch, queries=queries, targets=targets, negatives=negatives)
