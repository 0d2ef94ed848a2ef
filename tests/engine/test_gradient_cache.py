from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from virtue_pl.engine import gradient_cache
from virtue_pl.engine.gradient_cache import FullBatch, FunctionEncoder, GradientCache, cut_chunks, halve_chunks
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.types import EmbeddingBatch, EncoderBatch, ImageBatch, PairIds, PromptBatch, VirtueError


def text_batch(rows: int) -> EncoderBatch:
    ids = torch.randint(0, 20, (rows, 5), generator=torch.Generator().manual_seed(0))
    return EncoderBatch(
        ids,
        torch.ones_like(ids),
        ImageBatch(),
        PromptBatch((), torch.zeros(0, dtype=torch.long)),
        torch.zeros(0, dtype=torch.long),
    )


def gradients(strategy: FullBatch | GradientCache, rows: int, dropout: float) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    table, layer = nn.Embedding(20, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
    encoder = FunctionEncoder(
        lambda inputs: nn.functional.normalize(layer(table(inputs.input_ids).mean(dim=1)), dim=-1)
    )
    queries, targets = strategy(encoder, text_batch(rows)), strategy(encoder, text_batch(rows))
    ids = PairIds(torch.arange(rows), torch.arange(rows))
    loss = InfoNCELoss(0.1)(EmbeddingBatch(queries, targets, targets.new_zeros(0, 4), ids)).loss
    loss.backward()
    return loss.item(), [p.grad for p in [*table.parameters(), *layer.parameters()] if p.grad is not None]


@pytest.mark.parametrize("rows", [4, 7, 8])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_equals_the_plain_step(rows: int, chunk_size: int) -> None:
    plain_loss, plain = gradients(FullBatch(), rows, dropout=0.0)
    cached_loss, cached = gradients(GradientCache(chunk_size), rows, dropout=0.0)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)
    for ours, theirs in zip(cached, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7


def test_dropout_is_replayed() -> None:
    """The second encoding of a chunk must drop what the first dropped: then the loss falls along its own gradient."""

    class Chunks(FullBatch):
        def __call__(self, encoder, inputs):  # type: ignore[no-untyped-def]
            return torch.cat([encoder.encode(chunk) for chunk in inputs.split(3)])

    plain_loss, plain = gradients(Chunks(), 7, dropout=0.5)
    cached_loss, cached = gradients(GradientCache(3), 7, dropout=0.5)
    assert cached_loss == plain_loss
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(cached, plain, strict=True))


def test_dropout_is_replayed_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch saves the generators of those devices alone on which it finds a tensor among a checkpoint's arguments."""
    found: list[list[torch.device]] = []
    checkpoint = gradient_cache.checkpoint

    def observe(function, *arguments, **options):  # type: ignore[no-untyped-def]
        found.append([argument.device for argument in arguments if isinstance(argument, torch.Tensor)])
        return checkpoint(function, *arguments, **options)

    monkeypatch.setattr(gradient_cache, "checkpoint", observe)
    weight = nn.Parameter(torch.ones(1, 4, device="meta"))
    encoder = FunctionEncoder(lambda inputs: weight * inputs.input_ids[:, :1])
    GradientCache(2)(encoder, text_batch(4).to("meta")).sum().backward()
    assert found == [[torch.device("meta")]] * 2


LENGTHS = (5, 1, 4, 2, 5, 3, 1)


def uneven(inputs: EncoderBatch) -> list[int]:
    return list(LENGTHS[: len(inputs)])


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        (3, None, [[0, 1, 2], [3, 4, 5], [6]]),
        (None, 10, [[0, 4], [2, 5], [3, 1, 6]]),
        (2, 10, [[0, 4], [2, 5], [3, 1], [6]]),
        (None, 3, [[0], [4], [2], [5], [3], [1, 6]]),
        (None, 100, [[0, 4, 2, 5, 3, 1, 6]]),
    ],
)
def test_rows_are_cut_by_number_and_by_padded_tokens(
    rows: int | None, tokens: int | None, expected: list[list[int]]
) -> None:
    assert cut_chunks(LENGTHS, rows, tokens) == expected
    assert cut_chunks((), rows, tokens) == []


@pytest.mark.parametrize("rows", [1, 7])
def test_chunks_by_tokens_give_the_rows_in_order(rows: int) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(20, 8)
    encode = lambda inputs: table(inputs.input_ids).mean(dim=1)  # noqa: E731
    inputs = text_batch(rows)
    found = GradientCache(chunk_tokens=8)(FunctionEncoder(encode, uneven), inputs)
    torch.testing.assert_close(found, encode(inputs))
    found.pow(2).sum().backward()
    again, table.weight.grad = table.weight.grad, None
    encode(inputs).pow(2).sum().backward()
    torch.testing.assert_close(again, table.weight.grad)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the fixture's one entry says is free."""
    free = [0]
    monkeypatch.setattr(gradient_cache, "available_memory", lambda device: free[0])
    yield free


@pytest.mark.parametrize(("rows_that_fit", "encodings"), [(2.5, 8), (100.0, 1)])
def test_automatic_chunks_follow_the_memory(free_bytes: list[int], rows_that_fit: float, encodings: int) -> None:
    """A row of five tokens keeps [5, 16] numbers of four bytes for the backward pass of the square, beside the
    weights.
    """
    torch.manual_seed(0)
    table, calls = nn.Embedding(20, 16), []

    def encode(inputs: EncoderBatch) -> torch.Tensor:
        calls.append(len(inputs))
        nn.functional.dropout(torch.ones(3))
        return table(inputs.input_ids).pow(2).sum(dim=1)

    cache, inputs, encoder = GradientCache("auto"), text_batch(7), FunctionEncoder(encode)
    free_bytes[0] = int(rows_that_fit * 5 * (16 * 4 + 8) / cache.memory_share)
    state = torch.get_rng_state()
    with torch.no_grad():
        cache(encoder, inputs)
    assert cache.chunk_tokens is None and calls == [7]
    torch.set_rng_state(state)
    cache.tokens_that_fit(encoder, inputs, [5] * 7)
    assert torch.equal(torch.get_rng_state(), state) and calls[1:] == [1, 2]
    del calls[:]
    cache(encoder, inputs).sum().backward()
    assert len(calls) == 2 + encodings and max(calls) == (2 if encodings > 1 else 7)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"chunk_size": 0}, r"gradient_cache\.chunk_size is 0, expected at least 1"),
        ({"chunk_tokens": 0}, r"gradient_cache\.chunk_tokens is 0, expected at least 1"),
        ({"chunk_size": "all"}, r"gradient_cache\.chunk_size is 'all', expected a number of rows, auto or null"),
        ({}, "says neither chunk_size nor chunk_tokens"),
        (
            {"chunk_size": 2, "frozen_dtype": "half"},
            "frozen_dtype is 'half', expected one of float32, float16, bfloat16",
        ),
        ({"chunk_size": "auto", "memory_share": 0.0}, "memory_share is 0"),
    ],
)
def test_what_makes_no_chunks_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(VirtueError, match=told):
        GradientCache(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_the_fullest_chunk_is_halved_first(seed: int) -> None:
    """Halve chunks one after the other, the first of the fullest: a literal loop."""
    generator = random.Random(seed)
    lengths = [generator.randrange(1, 9) for _ in range(generator.randrange(6))]
    rows = iter(generator.sample(range(100), sum(lengths)))
    chunks = [list(islice(rows, length)) for length in lengths]
    for number in range(sum(lengths) + 3):
        expected = list(chunks)
        while len(expected) < number and max(map(len, expected), default=0) > 1:
            fullest = max(range(len(expected)), key=lambda index: len(expected[index]))
            half = len(expected[fullest]) // 2
            expected[fullest : fullest + 1] = [expected[fullest][:half], expected[fullest][half:]]
        assert halve_chunks(chunks, number) == expected


def test_halving_looks_at_each_chunk_a_few_times() -> None:
    """4,096 chunks of 4,096 rows: to scan all for each would be 8 million looks."""
    looks = 0

    class Rows(list[int]):
        def __len__(self) -> int:
            nonlocal looks
            looks += 1
            return super().__len__()

        def __getitem__(self, index: Any) -> Any:
            return Rows(super().__getitem__(index))

    assert len(halve_chunks([Rows(range(4096))], 4096)) == 4096
    assert looks < 5 * 4096
