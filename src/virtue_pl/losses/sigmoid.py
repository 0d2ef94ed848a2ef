"""The pairwise sigmoid loss."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import CandidateScores, ContrastiveLoss
from virtue_pl.types import EmbeddingBatch


class SigmoidLoss(ContrastiveLoss):
    """The pairwise sigmoid loss, in which every pair is classified on its own (Zhai et al. 2023, SigLIP).

    loss_i = -sum_j log sigmoid( z_ij (s_ij + b) ), z = 1 for the target, -1 for the others; b is learned.

    Args:
        bias: the initial b.
        others: see `ContrastiveLoss`.

    Example:
        >>> loss = SigmoidLoss(temperature=0.1, bias=-10.0)
        >>> loss.bias.item()
        -10.0
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        adapter_dim: int | None = None,
        bias: float = -10.0,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
        margin: float | None = None,
        mask_same_image: bool = False,
        mask_false_negatives: bool = True,
    ) -> None:
        super().__init__(
            temperature,
            learn_temperature,
            adapter_dim,
            optimization,
            weights,
            weights_prefix,
            frozen,
            margin,
            mask_same_image,
            mask_false_negatives,
        )
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.load_and_freeze()

    def query_loss(self, values: Float[Tensor, " candidates"]) -> Float[Tensor, ""]:
        """Return the summed loss of one query. values: its cosines over temperature, the right candidate's first."""
        shifted = values + self.bias
        return -logsigmoid(shifted[0]) - logsigmoid(-shifted[1:]).sum()

    def reduce(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, ""]:
        """Return the mean over this rank's queries of each query's summed loss."""
        values, left_out = scores.values, scores.values.isneginf()
        signs = torch.full_like(values, -1.0).scatter(1, scores.positive[:, None], 1.0)
        return (
            -logsigmoid(signs * values.add(self.bias).masked_fill(left_out, 0.0))
            .masked_fill(left_out, 0.0)
            .sum(dim=1)
            .mean()
        )
