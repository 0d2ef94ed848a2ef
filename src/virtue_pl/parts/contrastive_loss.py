"""What pulls a query to its target and pushes it from everything else; also a root that learns from stored embeddings."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from virtue_pl import distributed
from virtue_pl.optimization import Optimization
from virtue_pl.parts.part import Part
from virtue_pl.types import EmbeddingBatch, Pictures, Preprocess, VirtueError


class LossOutput(NamedTuple):
    """The loss of this rank's queries, and figures to log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


class StoredEmbeddings:
    """What data learns from a loss that runs alone: nothing is to be prepared."""

    def train(self, samples: Any) -> Any:
        return samples

    def evaluate(self, samples: Any) -> Any:
        return samples

    def pictures(self, images: Any) -> Pictures:
        return Pictures()

    @property
    def fingerprints(self) -> dict[str, str]:
        return {}


class ContrastiveLoss(Part):
    """Scores every query against every candidate of every rank, leaving false negatives out.

    Queries stay on their rank; targets and hard negatives are gathered with gradient. The mean over ranks of the returned
    losses is the loss of the global batch, so DDP's averaging gives its gradient.

    Args:
        temperature: cosines are divided by it.
        learn_temperature: train its logarithm; it stays within [0.005, 1].
        adapter_dim: only for running alone: width of the stored embeddings, which then pass a linear map that the loss trains
            (the identity at first).
        optimization, weights, weights_prefix, frozen: see `Part`; alone, the loss learns on stored embeddings.
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
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
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
        return self.log_temperature.exp().clamp(0.005, 1.0)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        """The loss of this rank's queries against all ranks' candidates."""
        candidates = torch.cat([distributed.gather(batch.targets), distributed.gather(batch.negatives)])
        scores = batch.queries.float() @ candidates.float().T / self.temperature
        false_negative, positive = self.false_negatives(batch)
        scores = scores.masked_fill(false_negative, float("-inf"))
        loss = self.reduce(scores, positive, batch)
        accuracy = (scores.argmax(dim=1) == positive).float().mean()
        return LossOutput(loss, {"in_batch_accuracy": accuracy.detach(), "temperature": self.temperature.detach()})

    def false_negatives(self, batch: EmbeddingBatch) -> tuple[Bool[Tensor, "pairs candidates"], Int[Tensor, " pairs"]]:
        """Candidates with the caption, or of the sample, that a query is right for; and where its own target stands."""
        pairs = len(batch)
        target_ids = distributed.gather(batch.target_ids)
        candidate_ids = torch.cat([target_ids, distributed.gather(batch.negative_ids)])
        equal = candidate_ids[None] == batch.target_ids[:, None]
        equal[:, : len(target_ids)] |= distributed.gather(batch.query_ids)[None] == batch.query_ids[:, None]
        positive = distributed.rank() * pairs + torch.arange(pairs, device=equal.device)
        return equal.scatter(1, positive[:, None], False), positive

    @abstractmethod
    def reduce(self, scores: Float[Tensor, "pairs candidates"], positive: Int[Tensor, " pairs"], batch: EmbeddingBatch) -> Float[Tensor, ""]:
        """From scores over temperature (-inf where a candidate is left out) to the loss."""

    def own_negatives(self, scores: Float[Tensor, "pairs candidates"], batch: EmbeddingBatch) -> Bool[Tensor, "pairs candidates"]:
        """Which candidates are a query's own hard negatives. Ranks hold equally many."""
        count = len(batch.negative_rows)
        own = torch.zeros_like(scores, dtype=torch.bool)
        first = distributed.world_size() * len(batch) + distributed.rank() * count
        own[batch.negative_rows, first + torch.arange(count, device=scores.device)] = True
        return own

    def training_step(self, batch: EmbeddingBatch, batch_idx: int) -> Tensor:
        return self.log_step("train", batch)

    def validation_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        self.log_step("val", batch)

    def test_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        self.log_step("test", batch)

    def adapt(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        """The stored embeddings through the trained map."""
        if self.adapter is None:
            return batch
        queries, targets, negatives = (normalize(self.adapter(part), dim=-1) for part in (batch.queries, batch.targets, batch.negatives))
        return replace(batch, queries=queries, targets=targets, negatives=negatives)

    def log_step(self, stage: str, batch: EmbeddingBatch) -> Tensor:
        output = self(self.adapt(batch))
        self.log(f"{stage}/loss", output.loss, prog_bar=True, batch_size=len(batch), sync_dist=stage != "train")
        for name, value in output.metrics.items():
            self.log(f"{stage}/{name}", value, batch_size=len(batch), sync_dist=stage != "train")
        return output.loss

    @property
    def preprocess(self) -> Preprocess:
        """Stored embeddings are batches already."""
        return StoredEmbeddings()


def identity_map(dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(linear.weight)
    return linear


class InfoNCELoss(ContrastiveLoss):
    """Cross-entropy of the right candidate among all (van den Oord et al. 2018; VIRTUE, section 3).

    loss_i = -log( exp(s_ip) / sum_j exp(s_ij) ), s over temperature, j over targets and hard negatives of all ranks.

    Args:
        own_negatives_weight: adds, with this weight, the same loss among the target and the query's own hard negatives only,
            which are few among the many easy candidates of the batch.
        others: see `ContrastiveLoss`.
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
    ) -> None:
        super().__init__(temperature, learn_temperature, adapter_dim, optimization, weights, weights_prefix, frozen)
        self.own_negatives_weight = own_negatives_weight
        self.finish()

    def reduce(self, scores: Float[Tensor, "pairs candidates"], positive: Int[Tensor, " pairs"], batch: EmbeddingBatch) -> Float[Tensor, ""]:
        loss = cross_entropy(scores, positive)
        if self.own_negatives_weight and len(batch.negative_rows):
            own = self.own_negatives(scores, batch).scatter(1, positive[:, None], True)
            loss = loss + self.own_negatives_weight * cross_entropy(scores.masked_fill(~own, float("-inf")), positive)
        return loss


class SigmoidLoss(ContrastiveLoss):
    """Every pair judged on its own (Zhai et al. 2023, SigLIP).

    loss_i = -sum_j log sigmoid( z_ij (s_ij + b) ), z = 1 for the target, -1 for the others; b is learned.

    Args:
        bias: start of b.
        others: see `ContrastiveLoss`.
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
    ) -> None:
        super().__init__(temperature, learn_temperature, adapter_dim, optimization, weights, weights_prefix, frozen)
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.finish()

    def reduce(self, scores: Float[Tensor, "pairs candidates"], positive: Int[Tensor, " pairs"], batch: EmbeddingBatch) -> Float[Tensor, ""]:
        signs = torch.full_like(scores, -1.0).scatter(1, positive[:, None], 1.0)
        return -logsigmoid(signs * scores.add(self.bias).masked_fill(scores.isneginf(), 0.0)).masked_fill(scores.isneginf(), 0.0).sum(dim=1).mean()
