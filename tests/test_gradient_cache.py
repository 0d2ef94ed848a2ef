from __future__ import annotations

import pytest
import torch
from torch import nn

from virtue_pl.gradient_cache import GradientCache, PlainStep
from virtue_pl.parts.contrastive_loss import InfoNCELoss
from virtue_pl.types import EmbeddingBatch, EncoderBatch, Pictures, PromptBatch, VirtueError


def text_batch(rows: int) -> EncoderBatch:
    ids = torch.randint(0, 20, (rows, 5), generator=torch.Generator().manual_seed(0))
    return EncoderBatch(ids, torch.ones_like(ids), Pictures(), PromptBatch((), torch.zeros(0, dtype=torch.long)), torch.zeros(0, dtype=torch.long))


def gradients(strategy: PlainStep | GradientCache, rows: int, dropout: float) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    table, layer = nn.Embedding(20, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
    encode = lambda inputs: nn.functional.normalize(layer(table(inputs.input_ids).mean(dim=1)), dim=-1)  # noqa: E731
    queries, targets = strategy(encode, text_batch(rows)), strategy(encode, text_batch(rows))
    empty, ids = torch.zeros(0, dtype=torch.long), torch.arange(rows)
    loss = InfoNCELoss(0.1)(EmbeddingBatch(queries, targets, targets.new_zeros(0, 4), ids, ids, empty, empty)).loss
    loss.backward()
    return loss.item(), [p.grad for p in [*table.parameters(), *layer.parameters()] if p.grad is not None]


@pytest.mark.parametrize("rows", [4, 7, 8])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_equals_the_plain_step(rows: int, chunk_size: int) -> None:
    plain_loss, plain = gradients(PlainStep(), rows, dropout=0.0)
    cached_loss, cached = gradients(GradientCache(chunk_size), rows, dropout=0.0)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)
    for ours, theirs in zip(cached, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7


def test_dropout_is_replayed() -> None:
    """The second encoding of a chunk must drop what the first dropped: then the loss falls along its own gradient."""

    class Chunks(PlainStep):
        def __call__(self, encode, inputs):  # type: ignore[no-untyped-def]
            return torch.cat([encode(chunk) for chunk in inputs.split(3)])

    plain_loss, plain = gradients(Chunks(), 7, dropout=0.5)
    cached_loss, cached = gradients(GradientCache(3), 7, dropout=0.5)
    assert cached_loss == plain_loss
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(cached, plain, strict=True))


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(VirtueError, match=r"gradient_cache\.chunk_size is 0"):
        GradientCache(0)
