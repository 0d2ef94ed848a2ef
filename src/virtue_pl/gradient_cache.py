"""Contrastive batches larger than memory: encode in chunks, keep only the embeddings, and encode again in the backward pass.

The gradient is that of the whole batch (Gao et al. 2021, arXiv 2101.06983). Each chunk is an activation checkpoint, so
autograd itself recomputes it with the dropout it had, and gradients reach each parameter once: DDP, FSDP2, clipping and
accumulation work as in a plain step, and ranks talk once a step. What is frozen is encoded before, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from virtue_pl.distributed import largest, smallest
from virtue_pl.memory import available_memory, graph_bytes
from virtue_pl.types import EncoderBatch, VirtueError, cast, move

Encode = Callable[[EncoderBatch], Float[Tensor, "rows dim"]]
Lengths = Callable[[EncoderBatch], Sequence[int]]
"""Tokens of every row."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Known(Protocol):
    """Adds to inputs what frozen networks see of them, `at_once` pictures at a time; `keep` says where that is kept, and how precisely."""

    def __call__(self, inputs: EncoderBatch, at_once: int, keep: Callable[[Any], Any]) -> EncoderBatch: ...


def nothing_known(inputs: EncoderBatch, at_once: int, keep: Callable[[Any], Any]) -> EncoderBatch:
    return inputs


class PlainStep:
    """The whole batch at once: fastest where its activations fit into memory."""

    equal_chunks = False

    def __call__(self, encode: Encode, inputs: EncoderBatch, known: Known = nothing_known, lengths: Lengths | None = None) -> Float[Tensor, "rows dim"]:
        return encode(inputs)

    def describe(self, batch_size: int) -> str:
        return "the whole batch at once"


class GradientCache:
    """Chunks of rows, whose activations live only while their gradient is computed. A batch that is one chunk is a plain step.

    Args:
        chunk_size: rows of a chunk, of which the last may hold fewer; "auto" measures at the first step what a token's activations take,
            and makes chunks of as many tokens as there is memory for; None where `chunk_tokens` alone cuts.
        chunk_tokens: tokens of a chunk, padding counted: rows of like length go together. A longer row is a chunk of its own.
        frozen_dtype: in which what frozen networks give is kept between a step's two passes: float32, float16 or bfloat16; None as it is.
        frozen_device: where it is kept, such as "cpu"; None where it is.
        memory_share: with "auto": of the memory that is free at the first step, for each of queries, targets and negatives.

    Where layers are sharded (`equal_chunks`), ranks take equally many chunks of equally many rows: each gathers the layers. The backward pass is
    one, so that gradients are sent once a step there too.
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
            raise VirtueError(f"gradient_cache.frozen_dtype is {frozen_dtype!r}, expected one of {', '.join(DTYPES)}, or null")
        if not 0 < memory_share <= 1:
            raise VirtueError(f"gradient_cache.memory_share is {memory_share}, expected more than 0 and at most 1")
        self.automatic = chunk_size == "auto"
        self.chunk_size = chunk_size if isinstance(chunk_size, int) else None
        self.chunk_tokens = chunk_tokens
        self.frozen_dtype = None if frozen_dtype is None else DTYPES[frozen_dtype]
        self.frozen_device = frozen_device
        self.memory_share = memory_share
        self.equal_chunks = False

    def __call__(self, encode: Encode, inputs: EncoderBatch, known: Known = nothing_known, lengths: Lengths | None = None) -> Float[Tensor, "rows dim"]:
        """lengths: of the rows, where they are more than texts and pictures."""
        counted = (lengths or text_lengths)(inputs) if self.automatic or self.chunk_tokens else [1] * len(inputs)
        if self.automatic and self.chunk_tokens is None and torch.is_grad_enabled() and len(inputs):
            self.chunk_tokens = self.tokens_that_fit(encode, inputs, counted)
        chunks = chunks_of(counted, self.chunk_size, self.chunk_tokens)
        if self.equal_chunks and torch.is_grad_enabled():
            chunks = divided(chunks, largest(len(chunks), inputs.input_ids.device))
        if len(chunks) <= 1:
            return encode(inputs)
        if not torch.is_grad_enabled():
            encoded = [encode(inputs.select(chunk)) for chunk in chunks]
        else:
            inputs = known(inputs, max(len(chunk) for chunk in chunks), self.keep)
            encoded = [checkpoint(encode, inputs.select(chunk), use_reentrant=False) for chunk in chunks]
        order = torch.tensor([row for chunk in chunks for row in chunk], device=encoded[0].device)
        return torch.cat(encoded)[order.argsort()]

    def keep(self, value: Any) -> Any:
        """`value`, of frozen networks, as and where it is kept."""
        value = value if self.frozen_dtype is None else cast(value, self.frozen_dtype)
        return value if self.frozen_device is None else move(value, self.frozen_device)

    def tokens_that_fit(self, encode: Encode, inputs: EncoderBatch, lengths: Sequence[int]) -> int:
        """Tokens whose activations fit into `memory_share` of the free memory of every rank; the longest row always does.

        One row more tells what a row takes, so that weights, which autograd keeps once, do not count. Random numbers go on as if nothing was.
        """
        row = max(range(len(lengths)), key=lambda index: lengths[index])
        device = inputs.input_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            one, two = (graph_bytes(lambda rows=rows: encode(inputs.select(rows))) for rows in ([row], [row, row]))  # type: ignore[misc]
        taken = max(1.0, (two - one) / max(1, lengths[row]))
        return max(lengths[row], smallest(int(self.memory_share * available_memory(device) / taken), device))

    def describe(self, batch_size: int) -> str:
        """How a batch of one row a sample is cut, in words."""
        if self.automatic:
            return "of as many tokens as there is memory for"
        if self.chunk_size is None or self.chunk_tokens is not None:
            return f"of at most {self.chunk_tokens} tokens" + (f" and {self.chunk_size} rows" if self.chunk_size else "")
        full, rest = divmod(batch_size, self.chunk_size)
        if not full or (full == 1 and not rest):
            return "the whole batch at once"
        size = self.chunk_size
        return f"{full} of {size} rows: they divide the batch" if not rest else f"{full} of {size} rows and one of {rest}: {size} does not divide {batch_size}"


def text_lengths(inputs: EncoderBatch) -> list[int]:
    counted: list[int] = inputs.attention_mask.sum(dim=1).tolist()
    return counted


def check_chunks(chunk_size: int | str | None, chunk_tokens: int | None) -> None:
    if isinstance(chunk_size, str) and chunk_size != "auto":
        raise VirtueError(f"gradient_cache.chunk_size is {chunk_size!r}, expected a number of rows, auto or null")
    if chunk_size is None and chunk_tokens is None:
        raise VirtueError("gradient_cache says neither chunk_size nor chunk_tokens: give one, or use PlainStep")
    for name, value in (("chunk_size", chunk_size), ("chunk_tokens", chunk_tokens)):
        if isinstance(value, int) and value < 1:
            raise VirtueError(f"gradient_cache.{name} is {value}, expected at least 1")


def chunks_of(lengths: Sequence[int], rows: int | None, tokens: int | None) -> list[list[int]]:
    """Rows cut into chunks of at most `rows` rows and `tokens` padded tokens, at least one row each.

    Cut by tokens, rows of like length go together, the longest first, so that little is padded; otherwise in order.
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


def divided(chunks: Sequence[list[int]], number: int) -> list[list[int]]:
    """The chunks with the fullest ones halved until there are `number` of them, or each is of one row."""
    cut = list(chunks)
    while len(cut) < number and max(map(len, cut), default=0) > 1:
        fullest = max(range(len(cut)), key=lambda index: len(cut[index]))
        rows = cut[fullest]
        cut[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return cut
