"""Losses that pull a query to its target and push it away from all other candidates."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from virtue_pl.engine.optimizer import Optimization
from virtue_pl.engine.ranks import collectives
from virtue_pl.losses.base import EmbeddingLoss, LossOutput
from virtue_pl.types import EmbeddingBatch, VirtueError

TEMPERATURE_BOUNDS = (0.005, 1.0)
"""The range of a learned temperature. CLIP (arXiv 2103.00020, section 2.5) bounds it too, at 0.01, after each step."""


class CandidateScores(NamedTuple):
    """Cosines over temperature, of this rank's queries with the targets and then the hard negatives of all ranks.

    values: -inf where a candidate is left out. positive: the column of each query's own target.
    same_pair: whether a pair of any rank is left out for its content, which is that of the query's own pair.
    first_negative: the column of this rank's first hard negative.

    Example:
        >>> nothing = torch.zeros(2, 2, dtype=torch.bool)
        >>> values, positive = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1])
        >>> scores = CandidateScores(values, positive, nothing, first_negative=2)
        >>> cross_entropy(scores.values, scores.positive)
        tensor(0.0181)
    """

    values: Float[Tensor, "pairs candidates"]
    positive: Int[Tensor, " pairs"]
    same_pair: Bool[Tensor, "pairs all_pairs"]
    first_negative: int


class ContrastiveLoss(EmbeddingLoss):
    """A loss on the scores of every query with every candidate of every rank, false negatives left out.

    Queries stay on their rank; targets and hard negatives are gathered with gradient, so that a rank's scores are of
    its own queries only. The mean over ranks of the returned losses is the loss of the global batch, so DDP's averaging
    gives its gradient.

    Args:
        temperature: cosines are divided by it. A fixed one is what is given here, whatever `weights` hold.
        learn_temperature: train its logarithm, from `temperature` on, which must be within `TEMPERATURE_BOUNDS`. Each
            step of the optimizer ends by moving it back to the bound that it passed, as CLIP does, so that its next
            gradient may lead it inside again.
        adapter_dim: only for running alone: the width of the stored embeddings, which then pass a linear map that the
            loss trains (the identity at first).
        margin: leave out candidates whose cosine with the query exceeds the target's by more than this (GISTEmbed,
            arXiv 2402.16829, with the model as its own guide): they are likely right, too. None to leave out none for
            its score.
        mask_same_image: leave out the targets of other queries on the same image. In SCaR they are worth learning
            from: other objects.
        mask_false_negatives: leave out candidates with the query's own caption, and those of the same sample. The
            paper's loss counts them as wrong.
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
        mask_false_negatives: bool = True,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.margin = margin
        self.mask_same_image = mask_same_image
        self.mask_false_negatives = mask_false_negatives
        check_temperature(temperature, learn_temperature)
        self.learn_temperature = learn_temperature
        self.start_temperature = float(temperature)
        start = torch.tensor(self.start_temperature).log()
        if learn_temperature:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)
        self.adapter = None if adapter_dim is None else identity_map(adapter_dim)

    @classmethod
    def stored_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a stored loss as they are taken today.

        Runs and folders of older versions may state a learned temperature beyond the bounds, which stood for the bound.
        """
        given = {name: one.default for name, one in inspect.signature(cls).parameters.items()} | dict(arguments)
        lower, upper = TEMPERATURE_BOUNDS
        learned = {"temperature": min(max(given["temperature"], lower), upper)} if given["learn_temperature"] else {}
        return {**arguments, **learned}

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """The temperature: the fixed one as it was given, or the learned one within `TEMPERATURE_BOUNDS`.

        The gradient passes through the bounds, for optimizers that do not call `clamp_parameters`.
        """
        log = self.log_temperature
        if self.learn_temperature:
            log = log + (log.clamp(*map(math.log, TEMPERATURE_BOUNDS)) - log).detach()
        return log.exp()

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Move a learned temperature beyond its bounds back to the nearer one, in place."""
        if self.learn_temperature:
            self.log_temperature.clamp_(*map(math.log, TEMPERATURE_BOUNDS))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Load tensors; a fixed temperature stays as it was given, a learned one is moved within its bounds."""
        name = f"{prefix}log_temperature"
        if name in state_dict:
            stored: Tensor = state_dict[name]
            given = torch.tensor(self.start_temperature).log().to(stored)
            bounds = map(math.log, TEMPERATURE_BOUNDS)
            state_dict[name] = stored.clamp(*bounds) if self.learn_temperature else given
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def compute_loss(self, batch: EmbeddingBatch) -> LossOutput:
        """Return the loss; the accuracy among the candidates that are not left out, their number and the temperature.

        `effective_negatives` is the mean over this rank's queries of the candidates that are not left out, of all
        ranks and hard negatives too, but for the right one.
        """
        scores = self.score(batch)
        loss = self.reduce(scores, batch)
        accuracy = (scores.values.argmax(dim=1) == scores.positive).float().mean()
        metrics = {
            "in_batch_accuracy": accuracy.detach(),
            "effective_negatives": (~scores.values.isneginf()).sum(dim=1).float().mean() - 1,
            "temperature": self.temperature.detach(),
        }
        return LossOutput(loss, metrics)

    def score(self, batch: EmbeddingBatch) -> CandidateScores:
        """Score this rank's queries against the candidates of all ranks, leaving false negatives out."""
        counts = collectives.gather_counts(len(batch.negatives), batch.negatives.device)
        candidates = torch.cat([collectives.gather(batch.targets), collectives.gather_uneven(batch.negatives, counts)])
        cosines = batch.queries.float() @ candidates.float().T
        same = self.same_pair(batch)
        positive = collectives.rank() * len(batch) + torch.arange(len(batch), device=same.device)
        same = same.scatter(1, positive[:, None], False)
        negative_ids = collectives.gather_uneven(batch.ids.negative_ids, counts)
        equal = (negative_ids[None] == batch.ids.target_ids[:, None]) & self.mask_false_negatives
        left_out = torch.cat([same, equal], dim=1) | self.beyond_margin(cosines, positive)
        values = (cosines / self.temperature).masked_fill(left_out, float("-inf"))
        first_negative = collectives.world_size() * len(batch) + sum(counts[: collectives.rank()])
        return CandidateScores(values, positive, same, first_negative)

    def ranking_loss(self, scores: Sequence[Float[Tensor, " candidates"]]) -> Float[Tensor, ""]:
        """Return the mean over queries of the loss among a query's own candidates; no rank waits for another."""
        values = [one.float() / self.temperature for one in scores]
        return torch.stack([self.query_loss(one) for one in values]).mean()

    def query_loss(self, values: Float[Tensor, " candidates"]) -> Float[Tensor, ""]:
        """Return the loss of one query. values: its cosines over temperature, the right candidate's first."""
        return -values.log_softmax(dim=0)[0]

    def same_pair(self, batch: EmbeddingBatch) -> Bool[Tensor, "pairs all_pairs"]:
        """Return which pairs of all ranks are left out for the content of each of this rank's.

        With `mask_false_negatives` they have the same target or are of the same sample, with `mask_same_image` they
        have a query on the same image.
        """
        ids = [batch.ids.target_ids, batch.ids.query_ids]
        if self.mask_same_image:
            if len(batch.ids.image_ids) != len(batch):
                raise VirtueError(
                    "loss.mask_same_image is set, but the batch does not say which images its queries show: set it to"
                    " false"
                )
            ids.append(batch.ids.image_ids)
        chosen = ids if self.mask_false_negatives else ids[2:]
        equal = [collectives.gather(column)[None] == column[:, None] for column in chosen]
        if not equal:
            return torch.zeros(
                len(batch), collectives.world_size() * len(batch), dtype=torch.bool, device=ids[0].device
            )
        return torch.stack(equal).any(dim=0)

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

    def own_negatives(self, scores: CandidateScores, batch: EmbeddingBatch) -> Bool[Tensor, "pairs candidates"]:
        """Return which candidates are a query's own hard negatives and not left out."""
        rows = batch.ids.negative_rows
        own = torch.zeros_like(scores.values, dtype=torch.bool)
        own[rows, scores.first_negative + torch.arange(len(rows), device=rows.device)] = True
        return own & ~scores.values.isneginf()

    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """Return the stored embeddings after the trained map."""
        if self.adapter is None:
            return batch
        queries, targets, negatives = (
            normalize(self.adapter(part), dim=-1) for part in (batch.queries, batch.targets, batch.negatives)
        )
        return replace(batch, queries=queries, targets=targets, negatives=negatives)


def check_temperature(temperature: float, learned: bool) -> None:
    """Raise VirtueError for a temperature that is not positive, and for a learned one that starts beyond its bounds."""
    if not 0 < temperature < math.inf:
        raise VirtueError(f"loss.temperature is {temperature}, expected a positive number (the paper: 0.02)")
    lower, upper = TEMPERATURE_BOUNDS
    if learned and not lower <= temperature <= upper:
        raise VirtueError(
            f"loss.temperature is {temperature}, expected {lower:g} to {upper:g}, within which it is learned: change"
            " it, or set loss.learn_temperature to false"
        )


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
            negatives only, which are few among the many easy candidates of the batch. It is the mean over the queries
            of all ranks that have hard negatives which are not left out.
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
        if self.own_negatives_weight:
            loss = loss + self.own_negatives_weight * self.own_negatives_loss(scores, batch)
        return loss

    def own_negatives_loss(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, ""]:
        """Return this rank's share of the mean cross-entropy among a query's target and its own hard negatives.

        Only queries that have some count: the mean over ranks of the shares is the mean over these queries. It is 0
        where no query has any.
        """
        own = self.own_negatives(scores, batch)
        counted = own.any(dim=1)
        few = scores.values.masked_fill(~own.scatter(1, scores.positive[:, None], True), float("-inf"))
        ignored = -1
        labels = scores.positive.masked_fill(~counted, ignored)
        total = cross_entropy(few, labels, reduction="sum", ignore_index=ignored)
        queries = collectives.all_reduce_sum(counted.sum()).clamp(min=1)
        return total / (queries / collectives.world_size())

    def target_scores(self, scores: CandidateScores, batch: EmbeddingBatch) -> Float[Tensor, "pairs all_pairs"]:
        """Return the scores of this rank's targets with the queries of all ranks, -inf where one is left out."""
        cosines = batch.targets.float() @ collectives.gather(batch.queries).float().T
        left_out = scores.same_pair | self.beyond_margin(cosines, scores.positive)
        return (cosines / self.temperature).masked_fill(left_out, float("-inf"))
