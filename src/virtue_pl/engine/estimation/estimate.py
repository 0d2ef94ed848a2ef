"""Memory and operations of a training step at any batch and chunk, from steps of a few rows on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from virtue_pl.engine.estimation.forked import run_beside, run_in_turn
from virtue_pl.engine.estimation.step_trace import (
    ACTIVATIONS,
    BATCH,
    GRADIENTS,
    KINDS,
    LOGITS,
    OPTIMIZER,
    RECOMPUTED,
    STORED,
    WEIGHTS,
    StepTrace,
    fill_caches,
    trace_loss,
    trace_step,
)
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.types import EmbeddingBatch, PairIds

WHOLE_ROWS = (2, 4)
"""Rows of the traced batches that are encoded as a whole."""
CHUNKED = ((1, 2), (1, 3), (2, 2), (2, 3))
"""Rows of a chunk, and chunks, of the traced batches that a gradient cache encodes."""
LARGEST = 2**22
"""Rows beyond which nothing larger is looked for."""

Corner = tuple[int, int, StepTrace]
"""Rows of a chunk, number of chunks, and the step traced with them."""


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights, and of those that have a gradient.

    sharded: those in the layers that FSDP2 shards, trained ones outside of them too. largest_layer: of one of them.

    Example:
        >>> Weights.count(nn.Linear(4, 2), []).trained
        40
    """

    all: int
    trained: int
    sharded: int
    largest_layer: int

    @classmethod
    def count(cls, model: nn.Module, layers: Sequence[nn.Module]) -> Weights:
        """Return the bytes of a model's weights. layers: those that FSDP2 shards one by one."""
        in_layers = {parameter for layer in layers for parameter in layer.parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(
            size_of([*model.parameters(), *model.buffers()]),
            size_of(trained),
            size_of({*in_layers, *trained}),
            max((size_of(layer.parameters()) for layer in layers), default=0),
        )


@dataclass(frozen=True)
class Ranks:
    """Processes that share a step. sharded: by FSDP2, not DDP. accumulation: batches of an optimizer's step.

    Example:
        >>> Ranks(8).number
        8
    """

    number: int = 1
    sharded: bool = False
    accumulation: int = 1


@dataclass(frozen=True)
class StepEstimate:
    """Cost of a training step of any batch, encoded as a whole or in chunks of any number of rows.

    What a step holds and computes is of its own, of the chunk that is encoded, of each chunk and of all rows; the
    traced steps give these parts. The loss's grows with the square of the batch, and is traced at its size.

    Args:
        whole: steps whose batch is encoded as a whole, of which the rows are the chunk's.
        chunked: steps with a gradient cache; empty for a model without one.
        weights: the model's.
        loss: the contrastive loss; None for a model without one.
        negatives: hard negatives of a row.
        ranks: the processes. Each has a batch of its own, and the candidates of all.
        stored_on_host: stored representations wait in the host's memory.

    Example:
        >>> estimate = estimate_step(model, make_batch, torch.bfloat16)  # doctest: +SKIP
        >>> sum(estimate.memory(batch_size=1024, chunk_size=2).values()) / 2**30
        11.8
    """

    whole: Sequence[Corner]
    chunked: Sequence[Corner]
    weights: Weights
    loss: nn.Module | None = None
    negatives: int = 0
    ranks: Ranks = Ranks()
    stored_on_host: bool = False

    def memory(self, batch_size: int, chunk_size: int | None) -> dict[str, int]:
        """Return the bytes of each kind that a device holds at the step's peak. chunk_size: None for the whole batch.

        Stored representations on the host do not count.
        """
        phases = self.memory_of_phases(batch_size, chunk_size)
        return max(phases.values(), key=lambda kinds: sum(kinds.values()))

    def memory_of_phases(self, batch_size: int, chunk_size: int | None) -> dict[str, dict[str, int]]:
        """Return the bytes of each kind at the peak of each phase: forward, backward, loss, optimizer."""
        corners, rows, chunks = self.corners(batch_size, chunk_size)

        def bytes_of(read: Callable[[StepTrace], Mapping[str, int]]) -> dict[str, int]:
            def of_kind(kind: str) -> int:
                return interpolate(corners, rows, chunks, lambda one: read(one).get(kind, 0))

            return {kind: of_kind(kind) for kind in KINDS}

        phases = {phase: bytes_of(lambda one, phase=phase: one.peaks[phase]) for phase in corners[0][2].peaks}  # type: ignore[misc]
        if self.loss is not None:
            phases["loss"] = {**bytes_of(lambda one: one.before_loss), LOGITS: self.loss_cost(batch_size)[0]}
        held_after = {**dict.fromkeys(KINDS, 0), WEIGHTS: self.weights.all, GRADIENTS: self.weights.trained}
        phases["optimizer"] = {
            **held_after,
            ACTIVATIONS: self.weights.trained,  # AdamW on a GPU makes a tensor of each gradient's size
            BATCH: phases["forward"][BATCH],
        }
        return {phase: self.on_rank(kinds) for phase, kinds in phases.items()}

    def on_rank(self, kinds: Mapping[str, int]) -> dict[str, int]:
        """Return the bytes that one rank holds of what a process alone would hold, with the optimizer's states."""
        weights, ranks = self.weights, self.ranks
        gradients = weights.trained if ranks.accumulation > 1 else kinds[GRADIENTS]
        states, held = 2 * weights.trained, weights.all
        if ranks.number > 1 and ranks.sharded:
            gathered = min(weights.sharded, 2 * weights.largest_layer)
            held = weights.all - weights.sharded + weights.sharded // ranks.number + gathered
            gradients, states = gradients // ranks.number, states // ranks.number
        elif ranks.number > 1:
            gradients += weights.trained  # DDP sends buckets, which are copies
        stored = 0 if self.stored_on_host else kinds[STORED]
        return {**kinds, WEIGHTS: held, GRADIENTS: gradients, OPTIMIZER: states, STORED: stored}

    def stored(self, batch_size: int, chunk_size: int | None) -> int:
        """Return the bytes of the stored representations, wherever they are."""
        corners, rows, chunks = self.corners(batch_size, chunk_size)
        return interpolate(corners, rows, chunks, lambda one: one.before_loss.get(STORED, 0))

    def flops(self, batch_size: int, chunk_size: int | None) -> dict[str, int]:
        """Return the floating-point operations of a rank's step by phase, the loss's among them."""
        corners, rows, chunks = self.corners(batch_size, chunk_size)
        phases = {
            phase: interpolate(corners, rows, chunks, lambda one, phase=phase: one.flops[phase])  # type: ignore[misc]
            for phase in corners[0][2].flops
        }
        return {**phases, "loss": self.loss_cost(batch_size)[1] if self.loss is not None else 0}

    def model_flops(self, batch_size: int, chunk_size: int | None) -> int:
        """Return the operations of a rank's step without those that are done again."""
        flops = self.flops(batch_size, chunk_size)
        return sum(flops.values()) - flops[RECOMPUTED]

    def corners(self, batch_size: int, chunk_size: int | None) -> tuple[Sequence[Corner], float, float]:
        """Return the traced steps of a way to encode, the rows of a chunk, and the number of chunks."""
        if chunk_size is None or chunk_size >= batch_size or not self.chunked:
            return self.whole, batch_size, 1
        return self.chunked, chunk_size, batch_size / chunk_size

    def loss_cost(self, batch_size: int) -> tuple[int, int]:
        """Return the bytes and operations of a rank's loss: those of its own candidates, times the ranks."""
        bytes_taken, flops = loss_cost(self.loss, batch_size, self.whole[0][2].loss_dim, self.negatives)
        return bytes_taken * self.ranks.number, flops * self.ranks.number

    def largest_chunk(self, batch_size: int, limit: int) -> int | None:
        """Return the most rows of a chunk with which a step of a batch fits into `limit` bytes; None where none do."""
        return largest_fitting(lambda rows: sum(self.memory(batch_size, rows).values()) <= limit, batch_size)

    def largest_batch(self, chunk_size: int | None, limit: int) -> int | None:
        """Return the largest batch whose step fits into `limit` bytes, encoded in chunks or (None) as a whole."""
        return largest_fitting(lambda rows: sum(self.memory(rows, chunk_size).values()) <= limit, LARGEST)


def estimate_step(
    model: Any,
    make_batch: Callable[[int], Any],
    autocast: torch.dtype | None = None,
    negatives: int = 0,
    ranks: Ranks = Ranks(),
    forks: bool = False,
) -> StepEstimate:
    """Return the cost of a model's training step, from steps of a few rows that are traced.

    Args:
        model: on the meta device. Without a gradient cache its batches are whole.
        make_batch: makes a batch of so many rows, on the meta device.
        autocast: the dtype of mixed precision.
        negatives: hard negatives of a row that `make_batch` makes.
        ranks: the processes that share a step.
        forks: trace half of the steps in a forked process.
    """
    cache = getattr(model, "gradient_cache", None)

    def tracer(rows: int, chunks: int, cut: Any) -> Callable[[], Corner]:
        batch = make_batch(rows * chunks)

        def trace() -> Corner:
            with patch.object(model, "gradient_cache", cut) if cache is not None else patch.dict({}):
                return rows, chunks, trace_step(model, batch, autocast)

        return trace

    fill_caches(model, make_batch(1), autocast)
    chunked = [] if cache is None else [tracer(c, n, with_chunks(cache, c)) for c, n in CHUNKED]
    whole = [tracer(rows, 1, FullBatch()) for rows in WHOLE_ROWS]
    mine, others = [*chunked[::2], *whole], chunked[1::2]
    here, there = (run_beside if forks and others else run_in_turn)(mine, others)
    return StepEstimate(
        whole=here[-len(whole) :],
        chunked=[corner for pair in zip(here[: -len(whole)], there, strict=True) for corner in pair],
        weights=Weights.count(model, model.sharded_layers()),
        loss=None if cache is None else model.loss,
        negatives=negatives,
        ranks=ranks,
        stored_on_host=getattr(cache, "frozen_device", None) == "cpu",
    )


def with_chunks(cache: FullBatch | GradientCache, rows: int) -> GradientCache:
    """Return a gradient cache of chunks of `rows` rows, that stores what frozen networks give as `cache` does."""
    cut = copy.copy(cache) if isinstance(cache, GradientCache) else GradientCache(rows)
    cut.chunk_size, cut.chunk_tokens, cut.automatic, cut.frozen_device = rows, None, False, None
    return cut


@lru_cache(maxsize=1024)
def loss_cost(loss: Any, batch_size: int, dim: int, negatives: int) -> tuple[int, int]:
    """Return the bytes and operations of a loss on a batch of embeddings of width `dim`, on one rank."""

    def embeddings(rows: int) -> torch.Tensor:
        return torch.empty(rows, dim, device="meta", requires_grad=True)

    def ids(rows: int) -> torch.Tensor:
        return torch.empty(rows, dtype=torch.long, device="meta")

    further = batch_size * negatives
    pairs = PairIds(ids(batch_size), ids(batch_size), ids(further), ids(further), ids(batch_size))
    candidates = embeddings(batch_size), embeddings(further)
    return trace_loss(loss, EmbeddingBatch(embeddings(batch_size), *candidates, pairs))


def interpolate(corners: Sequence[Corner], rows: float, chunks: float, read: Callable[[StepTrace], int]) -> int:
    """Return a number of a step at `rows` rows a chunk and `chunks` chunks, bilinear in them, at least 0."""

    def terms(row_count: float, chunk_count: float) -> list[float]:
        chunked = [chunk_count, row_count * chunk_count]
        return [1, row_count, *(chunked if len(corners) == len(CHUNKED) else [])]

    factors = np.linalg.solve(
        np.array([terms(row_count, number) for row_count, number, _ in corners], dtype=float),
        np.array([read(trace) for *_, trace in corners], dtype=float),
    )
    return max(0, round(float(factors @ np.array(terms(rows, chunks)))))


def largest_fitting(fits: Callable[[int], bool], limit: int) -> int | None:
    """Return the largest number up to `limit` that fits; None where 1 does not."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def size_of(tensors: Any) -> int:
    """Return the bytes of tensors, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in set(tensors))
