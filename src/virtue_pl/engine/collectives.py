"""Collectives that pass gradients on, and that do nothing in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Return the number of processes that train together; 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's index among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(local: Shaped[Tensor, "local *rest"]) -> Shaped[Tensor, "all *rest"]:
    """Return all ranks' rows in rank order; every rank must hold equally many.

    Differentiable: the gradient of a row is the sum over the ranks that used it.
    """
    if world_size() == 1:
        return local
    return torch.cat(list(all_gather(local.contiguous())))


def with_unused_parameters(loss: Float[Tensor, ""], parameters: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Return `loss` with a gradient of zero for parameters that it does not use.

    All ranks wait for the gradients of the same parameters.
    """
    return loss + sum((0 * parameter).sum() for parameter in parameters)


def all_reduce_min(value: int, device: torch.device) -> int:
    """Return the smallest `value` of all ranks."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def all_reduce_max(value: int, device: torch.device) -> int:
    """Return the largest `value` of all ranks."""
    return -all_reduce_min(-value, device)
