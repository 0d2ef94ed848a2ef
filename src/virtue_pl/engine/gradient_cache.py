"""Contrastive batches larger than memory: encode in chunks, store embeddings, encode again in the backward pass.

The gradient is that of the whole batch (Gao et al. 2021, arXiv 2101.06983). Each chunk is an activation checkpoint, so
autograd itself recomputes it with the dropout it had, and gradients reach each parameter once: DDP, FSDP2, clipping and
accumulation work as in a step without chunks, and ranks communicate once a step. Frozen networks run once, before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heapify, heappush, heapreplace
from itertools import accumulate
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from virtue_pl.engine.memory import available_memory, graph_bytes
from virtue_pl.engine.ranks.collectives import all_reduce_max, all_reduce_min
from virtue_pl.types import EncoderBatch, VirtueError, cast, index_tensors, move

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Offload = Callable[[Any], Any]
"""Moves a value (tensors, or tuples and batches of them) to the device and dtype in which a step stores it."""


class ChunkEncoder(Protocol):
    """An interface for encoding a batch chunk by chunk; `EmbeddingModel` and `FunctionEncoder` implement it.

    Example:
        >>> embeddings = GradientCache(chunk_size=8)(model, inputs)  # doctest: +SKIP
    """

    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the unit embeddings of the rows, with gradients."""

    def encode_frozen(self, inputs: EncoderBatch, chunk_size: int, offload: Offload) -> EncoderBatch:
        """Return the inputs with frozen networks' outputs instead of pixels, encoding `chunk_size` images at a time."""

    def token_counts(self, inputs: EncoderBatch) -> Sequence[int]:
        """Return the number of tokens of each row that the language model reads."""


class FunctionEncoder:
    """A function from a batch to embeddings as a `ChunkEncoder` without frozen networks.

    Args:
        encode: from a batch to one embedding a row.
        token_counts: the number of tokens of each row; by default those of its text and images (`attention_mask`).

    Example:
        >>> from virtue_pl.types import ImageBatch, PromptBatch
        >>> none, ids = torch.zeros(0, dtype=torch.long), torch.tensor([[1], [2], [3]])
        >>> inputs = EncoderBatch(ids, torch.ones_like(ids), ImageBatch(), PromptBatch((), none), use_rows=none)
        >>> encoder = FunctionEncoder(lambda inputs: inputs.input_ids.float())
        >>> GradientCache(chunk_size=2)(encoder, inputs).flatten()
        tensor([1., 2., 3.])
    """

    def __init__(
        self,
        encode: Callable[[EncoderBatch], Float[Tensor, "rows dim"]],
        token_counts: Callable[[EncoderBatch], Sequence[int]] | None = None,
    ) -> None:
        self._encode = encode
        self._token_counts = token_counts or count_tokens

    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the function's embeddings of the rows."""
        return self._encode(inputs)

    def encode_frozen(self, inputs: EncoderBatch, chunk_size: int, offload: Offload) -> EncoderBatch:
        """Return the inputs as they are."""
        return inputs

    def token_counts(self, inputs: EncoderBatch) -> Sequence[int]:
        """Return the number of tokens of each row."""
        return self._token_counts(inputs)


class FullBatch:
    """Encoding of the whole batch at once, which is fastest where its activations fit into memory.

    Example:
        >>> embeddings = FullBatch()(model, inputs)  # doctest: +SKIP
    """

    equal_chunks = False

    def __call__(self, encoder: ChunkEncoder, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of all rows."""
        return encoder.encode(inputs)

    def describe(self, batch_size: int) -> str:
        """Return how a batch is cut, in words."""
        return "the whole batch at once"


class GradientCache:
    """Encoding in chunks of rows, whose activations live only while their gradient is computed.

    A batch of one chunk is encoded as by `FullBatch`.

    Where layers are sharded (`equal_chunks`), all ranks cut equally many chunks, since each chunk gathers the layers.
    There is one backward pass, so that gradients are sent once a step there too.

    Args:
        chunk_size: rows of a chunk, of which the last may hold fewer. "auto" measures at the first step how much memory
            a token's activations take, and cuts chunks of as many tokens as fit. None where `chunk_tokens` alone cuts.
        chunk_tokens: tokens of a chunk, padding counted: rows of similar length go together. A longer row is a chunk of
            its own.
        frozen_dtype: the dtype in which outputs of frozen networks are stored between a step's two passes: float32,
            float16 or bfloat16; None for their own.
        frozen_device: the device on which they are stored, such as "cpu"; None for their own.
        memory_share: with "auto", the share of the memory that is free at the first step, for each of queries, targets
            and negatives.

    Example:
        >>> embeddings = GradientCache(chunk_size=8, frozen_device="cpu")(model, inputs)  # doctest: +SKIP
    """

    def __init__(
        self,
        chunk_size: int | str | None = None,
        chunk_tokens: int | None = None,
        frozen_dtype: str | None = None,
        frozen_device: str | None = None,
        memory_share: float = 0.25,
    ) -> None:
        check_chunks(chunk_size, chunk_tokens)
        if frozen_dtype is not None and frozen_dtype not in DTYPES:
            expected = ", ".join(DTYPES)
            raise VirtueError(f"gradient_cache.frozen_dtype is {frozen_dtype!r}, expected one of {expected}, or null")
        if not 0 < memory_share <= 1:
            raise VirtueError(f"gradient_cache.memory_share is {memory_share}, expected more than 0 and at most 1")
        self.automatic = chunk_size == "auto"
        self.chunk_size = chunk_size if isinstance(chunk_size, int) else None
        self.chunk_tokens = chunk_tokens
        self.frozen_dtype = None if frozen_dtype is None else DTYPES[frozen_dtype]
        self.frozen_device = frozen_device
        self.memory_share = memory_share
        self.equal_chunks = False

    def __call__(self, encoder: ChunkEncoder, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of all rows, in order; the backward pass runs the trained networks again."""
        chunks = self.cut(encoder, inputs)
        if len(chunks) <= 1:
            return encoder.encode(inputs)
        if not torch.is_grad_enabled():
            encoded = [encoder.encode(inputs.select(chunk)) for chunk in chunks]
        else:
            inputs = encoder.encode_frozen(inputs, max(len(chunk) for chunk in chunks), self.offload)
            encoded = [checkpoint_chunk(encoder, inputs.select(chunk)) for chunk in chunks]
        order = [row for chunk in chunks for row in chunk]
        (index,) = index_tensors([sorted(range(len(order)), key=order.__getitem__)], encoded[0].device)
        return torch.cat(encoded)[index]

    def cut(self, encoder: ChunkEncoder, inputs: EncoderBatch) -> list[list[int]]:
        """Return the rows of each chunk."""
        counts = encoder.token_counts(inputs) if self.automatic or self.chunk_tokens else [1] * len(inputs)
        if self.automatic and self.chunk_tokens is None and torch.is_grad_enabled() and len(inputs):
            self.chunk_tokens = self.tokens_that_fit(encoder, inputs, counts)
        chunks = cut_chunks(counts, self.chunk_size, self.chunk_tokens)
        if self.equal_chunks and torch.is_grad_enabled():
            chunks = halve_chunks(chunks, all_reduce_max(len(chunks), inputs.input_ids.device))
        return chunks

    def offload(self, value: Any) -> Any:
        """Return `value`, an output of frozen networks, in the dtype and on the device in which it is stored."""
        value = value if self.frozen_dtype is None else cast(value, self.frozen_dtype)
        return value if self.frozen_device is None else move(value, self.frozen_device)

    def tokens_that_fit(self, encoder: ChunkEncoder, inputs: EncoderBatch, counts: Sequence[int]) -> int:
        """Return the number of tokens whose activations fit into `memory_share` of every rank's free memory.

        It is at least the longest row's. The difference between two rows and one is measured, so that weights, which
        autograd stores once, do not count. The state of the random generators is restored.
        """
        row = max(range(len(counts)), key=lambda index: counts[index])
        device = inputs.input_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            one, two = (graph_bytes(partial(encode_rows, encoder, inputs, rows)) for rows in ([row], [row, row]))
        per_token = max(1.0, (two - one) / max(1, counts[row]))
        return max(counts[row], all_reduce_min(int(self.memory_share * available_memory(device) / per_token), device))

    def describe(self, batch_size: int) -> str:
        """Return how a batch of one row a sample is cut, in words."""
        if self.automatic:
            return "of as many tokens as there is memory for"
        if self.chunk_size is None or self.chunk_tokens is not None:
            return f"of at most {self.chunk_tokens} tokens" + (
                f" and {self.chunk_size} rows" if self.chunk_size else ""
            )
        full, rest = divmod(batch_size, self.chunk_size)
        if not full or (full == 1 and not rest):
            return "the whole batch at once"
        chunks = f"{full} of {self.chunk_size} rows"
        if not rest:
            return f"{chunks}: they divide the batch"
        return f"{chunks} and one of {rest}: {self.chunk_size} does not divide {batch_size}"


def checkpoint_chunk(encoder: ChunkEncoder, chunk: EncoderBatch) -> Float[Tensor, "rows dim"]:
    """Return the chunk's embeddings, which the backward pass computes again with the dropout that they had.

    torch restores the random generators of the devices of tensors among the arguments, and finds none in a batch.
    """

    def encode(_: Tensor) -> Float[Tensor, "rows dim"]:
        return encoder.encode(chunk)

    encoded: Tensor = checkpoint(encode, chunk.input_ids, use_reentrant=False)
    return encoded


def encode_rows(encoder: ChunkEncoder, inputs: EncoderBatch, rows: Sequence[int]) -> Float[Tensor, "rows dim"]:
    """Return the embeddings of the given rows."""
    return encoder.encode(inputs.select(rows))


def count_tokens(inputs: EncoderBatch) -> list[int]:
    """Return the number of tokens of each row's text and images, without padding and segment tokens."""
    return list(inputs.layout.token_counts)


def check_chunks(chunk_size: int | str | None, chunk_tokens: int | None) -> None:
    """Raise VirtueError for settings that make no chunks."""
    if isinstance(chunk_size, str) and chunk_size != "auto":
        raise VirtueError(f"gradient_cache.chunk_size is {chunk_size!r}, expected a number of rows, auto or null")
    if chunk_size is None and chunk_tokens is None:
        raise VirtueError("gradient_cache says neither chunk_size nor chunk_tokens: give one, or use FullBatch")
    for name, value in (("chunk_size", chunk_size), ("chunk_tokens", chunk_tokens)):
        if isinstance(value, int) and value < 1:
            raise VirtueError(f"gradient_cache.{name} is {value}, expected at least 1")


def cut_chunks(lengths: Sequence[int], rows: int | None, tokens: int | None) -> list[list[int]]:
    """Return the rows of each chunk: at most `rows` rows and `tokens` padded tokens, but at least one row.

    With `tokens`, rows of similar length go together, the longest first, so that little is padded; otherwise rows stay
    in order. lengths: the number of tokens of each row.
    """
    order = range(len(lengths)) if tokens is None else sorted(range(len(lengths)), key=lambda row: -lengths[row])
    chunks: list[list[int]] = []
    for row in order:
        last = chunks[-1] if chunks else []
        full = rows is not None and len(last) >= rows
        long = tokens is not None and last and (len(last) + 1) * lengths[last[0]] > tokens
        if not last or full or long:
            chunks.append([row])
        else:
            last.append(row)
    return chunks


def halve_chunks(chunks: Sequence[list[int]], number: int) -> list[list[int]]:
    """Return the chunks with the fullest ones halved until there are `number` of them, or each is of one row."""
    # by fullness, then by place: a chunk's first row in all rows, of which halves keep the order
    starts = accumulate(map(len, chunks), initial=0)
    heap = [(-len(chunk), start, chunk) for chunk, start in zip(chunks, starts, strict=False)]
    heapify(heap)
    while heap and len(heap) < number and heap[0][0] < -1:
        _, start, rows = heap[0]
        half = len(rows) // 2
        heapreplace(heap, (-half, start, rows[:half]))
        heappush(heap, (half - len(rows), start + half, rows[half:]))
    return [chunk for _, chunk in sorted((start, chunk) for _, start, chunk in heap)]
