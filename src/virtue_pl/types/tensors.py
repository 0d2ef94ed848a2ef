"""Dataclasses of tensors that are moved, cast and pinned together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, fields, replace
from typing import Any, ClassVar, Self

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
        return value.convert(lambda item: cast(item, dtype))
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

    host_properties: ClassVar[tuple[str, ...]] = ()
    """Names of cached properties that hold what was read from the tensors, and goes along with them."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same dataclass with all tensors on `device`."""
        return self.convert(lambda item: move(item, device, non_blocking))

    def pin_memory(self) -> Self:
        """Return the same dataclass with all tensors in page-locked memory."""
        return self.convert(pin)

    def convert(self, function: Callable[[Any], Any]) -> Self:
        """Return the same dataclass with `function` of every field, which changes no tensor's values."""
        changed: Self = replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]
        return self.share_host_properties(changed)

    def share_host_properties(self, other: Self) -> Self:
        """Return `other`, whose tensors say the same, with what the host has read of them already."""
        vars(other).update({name: vars(self)[name] for name in self.host_properties if name in vars(self)})
        return other


def empty_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return a dataclass field whose default is a tensor of zeros of the given shape."""
    return field(default_factory=lambda: torch.zeros(shape, dtype=dtype))


def index_tensors(lists: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Int[Tensor, " indices"], ...]:
    """Return lists of integers as int64 tensors on a device, to which they go as one.

    A CUDA device is not waited for: it is given a copy of what the host holds.
    """
    device = torch.device(device)
    indices = torch.tensor([index for each in lists for index in each], dtype=torch.long)
    moved = indices.to(device, non_blocking=device.type == "cuda")
    return moved.split([len(each) for each in lists])
