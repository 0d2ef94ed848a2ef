"""Contrastive batches larger than memory: encode in chunks, keep only the embeddings, and encode again in the backward pass.

The gradient is that of the whole batch (Gao et al. 2021, arXiv 2101.06983). Each chunk is an activation checkpoint, so
autograd itself recomputes it with the dropout it had, and gradients reach each parameter once: DDP, clipping and accumulation
work as in a plain step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from virtue_pl.types import EncoderBatch, VirtueError

Encode = Callable[[EncoderBatch], Float[Tensor, "rows dim"]]


class PlainStep:
    """The whole batch at once: fastest where its activations fit into memory."""

    chunk_size: int | None = None

    def __call__(self, encode: Encode, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        return encode(inputs)


class GradientCache:
    """Chunks of `chunk_size` rows, whose activations live only while their gradient is computed."""

    def __init__(self, chunk_size: int) -> None:
        if chunk_size < 1:
            raise VirtueError(f"gradient_cache.chunk_size is {chunk_size}, expected at least 1")
        self.chunk_size = chunk_size

    def __call__(self, encode: Encode, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        if not torch.is_grad_enabled() or len(inputs) <= self.chunk_size:
            return torch.cat([encode(chunk) for chunk in inputs.split(self.chunk_size)])
        return torch.cat([checkpoint(encode, chunk, use_reentrant=False) for chunk in inputs.split(self.chunk_size)])
