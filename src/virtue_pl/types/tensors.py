"""Dataclasses of tensors that are moved, cast and pinned together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor


def move(value: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Return `value` with all tensors on `device`, inside tuples, mappings and batches too."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, TensorDataclass):
        return value.to(device, non_blocking)
    if isinstance(value, tuple):
        return tuple(move(item, device, non_blocking) for item in value)
    if isinstance(value, dict):
        return {name: move(item, device, non_blocking) for name, item in value.items()}
    return value


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Return `value` with all floating-point tensors in `dtype`, inside tuples and batches too."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, TensorDataclass):
        return replace(value, **{f.name: cast(getattr(value, f.name), dtype) for f in fields(value)})  # type: ignore[type-var, arg-type]
    return tuple(cast(item, dtype) for item in value) if isinstance(value, tuple) else value


def pin(value: Any) -> Any:
    """Return `value` with all tensors in page-locked memory, inside tuples, mappings and batches too."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, TensorDataclass):
        return value.pin_memory()
    if isinstance(value, tuple):
        return tuple(pin(item) for item in value)
    if isinstance(value, dict):
        return {name: pin(item) for name, item in value.items()}
    return value


class TensorDataclass:
    """A base for frozen dataclasses whose tensors move together.

    Example:
        >>> from virtue_pl.types import VisualPrompt
        >>> VisualPrompt().to("cpu").boxes.device
        device(type='cpu')
    """

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same dataclass with all tensors on `device`."""
        return replace(self, **{f.name: move(getattr(self, f.name), device, non_blocking) for f in fields(self)})  # type: ignore[type-var, arg-type]

    def pin_memory(self) -> Self:
        """Return the same dataclass with all tensors in page-locked memory."""
        return replace(self, **{f.name: pin(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]


def empty_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return a dataclass field whose default is a tensor of zeros of the given shape."""
    return field(default_factory=lambda: torch.zeros(shape, dtype=dtype))


def select_owned(
    owners: Int[Tensor, " items"], rows: Sequence[int]
) -> tuple[Int[Tensor, " owned"], Int[Tensor, " owned"]]:
    """Return the indices of the items that the given rows own, row by row, and each owner's position in `rows`."""
    of_row: dict[int, list[int]] = {}
    for item, row in enumerate(owners.tolist()):
        of_row.setdefault(row, []).append(item)
    found = [(item, number) for number, row in enumerate(rows) for item in of_row.get(row, ())]
    items, numbers = torch.tensor(found, dtype=torch.long, device=owners.device).reshape(-1, 2).unbind(dim=1)
    return items, numbers
