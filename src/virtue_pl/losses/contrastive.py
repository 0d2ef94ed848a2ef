"""Losses that pull a query to its target and push it away from all other candidates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from virtue_pl.engine import collectives
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.base import EmbeddingLoss, LossOutput
from virtue_pl.types import EmbeddingBatch, VirtueError


class CandidateScores(NamedTuple):
    """Cosines over temperature, of this rank's queries with the targets and then the hard negatives of all ranks.

    values: -inf where a candidate is left out. positive: the column of each query's own target.
    same_pair: whether a pair of any rank has the same content as the query's own, itself excepted.

    Example:
        >>> nothing = torch.zeros(2, 2, dtype=torch.bool)
        >>> scores = CandidateScores(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]), nothing)
        >>> cross_entropy(scores.values, scores.positive)
        tensor(0.0181)
    """

    values: Float[Tensor, "pairs candidates"]
    positive: Int[Tensor, " pairs"]
    same_pair: Bool[Tensor, "pairs all_pairs"]


class ContrastiveLoss(EmbeddingLoss):
    """A loss on the scores of every query with every candidate of every rank, false negatives left out.

    Queries stay on their rank; targets and hard negatives are gathered with gradient, so that a rank's scores are of
    its own queries only. The mean over ranks of the returned losses is the loss of the global batch, so DDP's averaging
    gives its gradient.

    Args:
        temperature: cosines are divided by it.
        learn_temperature: train its logarithm; it stays within [0.005, 1].
        adapter_dim: only for running alone: the width of the stored embeddings, which then pass a linear map that the
            loss trains (the identity at first).
        margin: leave out candidates whose cosine with the query exceeds the target's by more than this (GISTEmbed,
            arXiv 2402.16829, with the model as its own guide): they are likely right, too. None to leave out only
            candidates with an equal caption or of the same sample.
        mask_same_image: leave out the targets of other queries on the same image. In SCaR they are worth learning
            from: other objects.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`; alone, the loss learns on stored embeddings.

    Example:
        >>> from virtue_pl.types import PairIds
        >>> pairs = PairIds(torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> batch = EmbeddingBatch(torch.eye(2), torch.eye(2), torch.zeros(0, 2), pairs)
        >>> InfoNCELoss(temperature=0.5).score(batch).values
        tensor([[2., 0.],
                [0., 2.]])
    """

    log_temperature: Tensor

    def __init__(
        self,
        temperature: float = 0.02,
        learn_temperature: bool = False,
        adapter_dim: int | None = None,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
        margin: float | None = None,
        mask_same_image: bool = False,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.margin = margin
        self.mask_same_image = mask_same_image
        if temperature <= 0:
            raise VirtueError(f"loss.temperature is {temperature}, expected a positive number (the paper: 0.02)")
        start = torch.tensor(float(temperature)).log()
        if learn_temperature:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)
        self.adapter = None if adapter_dim is None else identity_map(adapter_dim)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """The temperature, within [0.005, 1]."""
        return self.log_temperature.exp().clamp(0.005, 1.0)

    def compute_loss(self, batch: EmbeddingBatch) -> LossOutput:
        """Return the loss, the accuracy among the candidates that are not left out, and the temperature."""
        scores = self.score(batch)
        loss = self.reduce(scores, batch)
        accuracy = (scores.values.argmax(dim=1) == scores.positive).float().mean()
        return LossOutput(loss, {"in_batch_accuracy": accuracy.detach(), "temperature": self.temperature.detach()})

    def score(self, batch: EmbeddingBatch) -> CandidateScores:
        """Score this rank's queries against the candidates of all ranks, leaving false negatives out."""
        candidates = torch.cat([collectives.gather(batch.targets), collectives.gather(batch.negatives)])
        cosines = batch.queries.float() @ candidates.float().T
        same = self.same_pair(batch)
        positive = collectives.rank() * len(batch) + torch.arange(len(batch), device=same.device)
        same = same.scatter(1, positive[:, None], False)
        equal = collectives.gather(batch.ids.negative_ids)[None] == batch.ids.target_ids[:, None]
        left_out = torch.cat([same, equal], dim=1) | self.beyond_margin(cosines, positive)
        return CandidateScores((cosines / self.temperature).masked_fill(left_out, float("-inf")), positive, same)

    def same_pair(self, batch: EmbeddingBatch) -> Bool[Tensor, "pairs all_pairs"]:
        """Return which pairs of all ranks have the same content as each of this rank's.

        They have the same target, are of the same sample or, with `mask_same_image`, have a query on the same image.
        """
        ids = [batch.ids.target_ids, batch.ids.query_ids]
        if self.mask_same_image:
            if len(batch.ids.image_ids) != len(batch):
                raise VirtueError(
                    "loss.mask_same_image is set, but the batch does not say which images its queries show: set it to"
                    " false"
                )
            ids.append(batch.ids.image_ids)
        return torch.stack([collectives.gather(column)[None] == column[:, None] for column in ids]).any(dim=0)

    def beyond_margin(
        self, cosines: Float[Tensor, "rows columns"], positive: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows columns"]:
        """Return which candidates are closer than the right one by more than `margin`."""
        if self.margin is None:
            return torch.zeros_like(cosines, dtype=torch.bool)
        right = cosines.detach().gather(1, positive[:, None])
        return (cosines.detach() > right + self.margin).scatter(1, positive[:, None], False)

    @abstractmethod
    def reduce(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, ""]:
        """Return the loss of this rank's queries."""

    def own_negatives(
        self, scores: Float[Tensor, "pairs candidates"], batch: EmbeddingBatch
    ) -> Bool[Tensor, "pairs candidates"]:
        """Return which candidates are a query's own hard negatives. Ranks hold equally many."""
        rows = batch.ids.negative_rows
        own = torch.zeros_like(scores, dtype=torch.bool)
        first = collectives.world_size() * len(batch) + collectives.rank() * len(rows)
        own[rows, first + torch.arange(len(rows), device=scores.device)] = True
        return own

    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Return the stored embeddings after the trained map."""
        if self.adapter is None:
            return batch
        queries, targets, negatives = (
            normalize(self.adapter(part), dim=-1) for part in (batch.queries, batch.targets, batch.negatives)
        )
        return replace(batch, queries=queries, targets=targets, negatives=negatives)


def identity_map(dim: int) -> nn.Linear:
    """Return a linear map without bias that starts as the identity."""
    linear = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(linear.weight)
    return linear


class InfoNCELoss(ContrastiveLoss):
    """The cross-entropy of the right candidate among all (van den Oord et al. 2018; VIRTUE, section 3).

    loss_i = -log( exp(s_ip) / sum_j exp(s_ij) ), s over temperature, j over targets and hard negatives of all ranks.

    Args:
        own_negatives_weight: the weight of a second term: the same loss among the target and the query's own hard
            negatives only, which are few among the many easy candidates of the batch.
        symmetric: average that loss with the one that finds, for each target, its query among those of all ranks (CLIP,
            arXiv 2103.00020); hard negatives are candidates of queries alone.
        others: see `ContrastiveLoss`.

    Example:
        >>> from virtue_pl.types import PairIds
        >>> pairs = PairIds(torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> batch = EmbeddingBatch(torch.eye(2), torch.eye(2), torch.zeros(0, 2), pairs)
        >>> InfoNCELoss(temperature=1.0)(batch).loss
        tensor(0.3133)
    """

    def __init__(
        self,
        temperature: float = 0.02,
        learn_temperature: bool = False,
        adapter_dim: int | None = None,
        own_negatives_weight: float = 0.0,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
        symmetric: bool = False,
        margin: float | None = None,
        mask_same_image: bool = False,
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
        )
        self.own_negatives_weight = own_negatives_weight
        self.symmetric = symmetric
        self.load_and_freeze()

    @property
    def needs_negatives(self) -> str | None:
        """`own_negatives_weight` in words; None where it is 0."""
        return f"loss.own_negatives_weight is {self.own_negatives_weight:g}" if self.own_negatives_weight else None

    def reduce(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of this rank's queries, with the terms that are set."""
        positive = scores.positive
        loss = cross_entropy(scores.values, positive)
        if self.symmetric:
            loss = (loss + cross_entropy(self.target_scores(scores, batch), positive)) / 2
        if self.own_negatives_weight and len(batch.ids.negative_rows):
            own = self.own_negatives(scores.values, batch).scatter(1, positive[:, None], True)
            few = scores.values.masked_fill(~own, float("-inf"))
            loss = loss + self.own_negatives_weight * cross_entropy(few, positive)
        return loss

    def target_scores(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, "pairs all_pairs"]:
        """Return the scores of this rank's targets with the queries of all ranks, -inf where one is left out."""
        cosines = batch.targets.float() @ collectives.gather(batch.queries).float().T
        left_out = scores.same_pair | self.beyond_margin(cosines, scores.positive)
        return (cosines / self.temperature).masked_fill(left_out, float("-inf"))
