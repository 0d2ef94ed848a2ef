"""Collectives that pass gradients on, and that do nothing in a single process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together; 1 outside of distributed training, and `alone`."""
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Let this rank compute by itself what all of them have the rows for: collectives do nothing.

    Example:
        >>> with alone():
        ...     world_size()
        1
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def rank() -> int:
    """Return this process's index among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(local: Shaped[Tensor, "local *rest"]) -> Shaped[Tensor, "all *rest"]:
    """Return all ranks' rows in rank order; every rank must hold equally many.

    Differentiable: the gradient of a row is the sum over the ranks that used it. The backward pass is a collective,
    too, in which a rank takes part whose own rows need no gradient.
    """
    if world_size() == 1:
        return local
    if torch.is_grad_enabled() and local.is_floating_point() and not local.requires_grad:
        local = local.detach().requires_grad_()
    gathered: Tensor = GatherRows.apply(local)
    return gathered


class GatherRows(torch.autograd.Function):
    """The rows of all ranks, whose gradients are summed over ranks and given back to the rank that holds each.

    Example:
        >>> GatherRows.apply(embeddings).shape  # doctest: +SKIP
        torch.Size([64, 384])
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # type: ignore[override]
        """Return the rows of all ranks, in rank order."""
        ctx.rows = len(local)
        found = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(found, local.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """Return the sum over ranks of the gradient of this rank's rows."""
        total = all_reduce_sum(gradient.contiguous())
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_counts(count: int, device: torch.device) -> list[int]:
    """Return every rank's `count`, in rank order."""
    if world_size() == 1:
        return [count]
    found = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(found, torch.tensor([count], device=device))
    return torch.cat(found).tolist()


def gather_uneven(local: Shaped[Tensor, "local *rest"], counts: Sequence[int]) -> Shaped[Tensor, "all *rest"]:
    """Return all ranks' rows in rank order, differentiable as `gather`; rank r holds `counts[r]` of them.

    A rank without rows takes part in the backward pass, too: it is a collective, like the forward one.
    """
    if len(counts) == 1 or not max(counts):
        return local
    padding = local.new_zeros(max(counts) - len(local), *local.shape[1:])
    padding.requires_grad_(torch.is_grad_enabled() and padding.is_floating_point())
    parts = gather(torch.cat([local, padding])).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_sum(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the sum of all ranks' `value`, without gradients."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def host_group() -> dist.ProcessGroup:
    """Return a group of all ranks for what lies in the host's memory: nothing is sent through, or read from, a device.

    It is made at the first call, which is a collective.
    """
    everyone = dist.group.WORLD
    assert everyone is not None
    if _HOST_GROUPS.get("of") is not everyone:
        needs_its_own = "cpu:" not in dist.get_backend_config(everyone)
        _HOST_GROUPS.update({"of": everyone, "group": dist.new_group(backend="gloo") if needs_its_own else everyone})
    return _HOST_GROUPS["group"]


_HOST_GROUPS: dict[str, Any] = {}
"""The last `host_group`, and the group of all ranks that it was made for."""


def merge_flags(flags: Sequence[bool]) -> list[bool]:
    """Return the flags that any rank has set. It takes about 0.1 ms, and no device has to be waited for."""
    if world_size() == 1:
        return list(flags)
    found = torch.tensor(list(flags), dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=host_group())
    return found.bool().tolist()


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value`, small and made of plain types, in rank order."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value, group=host_group())
    return found


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
