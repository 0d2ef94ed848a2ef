"""Outputs of operations on the meta device, worked out once for inputs of the same shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype of a tensor that has a memory of its own."""
MAKE = torch.ops.aten.empty_strided.default


class MetaOutputs:
    """Runs operations on the meta device, each once for all inputs that are alike; torch takes much of it in Python.

    Alike are equal numbers, and tensors of equal sizes, strides and dtypes. Only what has memory of its own is made
    from what was noted: views, operations in place and tensors on other devices go through torch each time. Modes for
    functions are off inside an operation, as autocast is on a device.

    Example:
        >>> ones = torch.ones(2, 3, device="meta")
        >>> MetaOutputs()(torch.ops.aten.mul.Tensor, (ones, ones), {}).shape
        torch.Size([2, 3])
    """

    def __init__(self) -> None:
        self._noted: dict[Any, Any] = {}

    def __call__(self, operation: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        with torch._C.DisableTorchFunction():
            try:
                key = (operation, *map(describe, arguments), *((name, describe(options[name])) for name in options))
                noted = self._noted.get(key)
            except (NotOnMeta, TypeError):
                return operation(*arguments, **options)
            if noted is None:
                output = operation(*arguments, **options)
                self._noted[key] = layouts_of(operation, output, (*arguments, *options.values()))
                return output
            if noted is AGAIN:
                return operation(*arguments, **options)
            made = [None if one is None else make(one) for one in noted[1]]
            return made[0] if noted[0] is None else noted[0](made)


class NotOnMeta(Exception):
    """A tensor with values, on which an operation's output may depend."""


AGAIN = object()
"""Noted of an operation that goes through torch each time."""


def describe(value: Any) -> Any:
    """Return what an output's layout depends on, of an argument. Raises NotOnMeta for a tensor on another device."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise NotOnMeta
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return type(value), *map(describe, value)
    return type(value), value


def make(layout: Layout) -> Tensor:
    """Return a tensor of a layout, on the meta device."""
    sizes, strides, dtype = layout
    return MAKE(sizes, strides, dtype=dtype, device="meta")  # type: ignore[no-any-return]


def layouts_of(operation: Any, output: Any, inputs: Sequence[Any]) -> Any:
    """Return the type of an operation's output, None for a tensor, and its tensors' layouts.

    `AGAIN` for one that changes its inputs, shares memory with them, returns more than tensors, or more memory than
    a tensor of that layout has.
    """
    parts = [output] if isinstance(output, Tensor) else output
    if operation._schema.is_mutable or not isinstance(parts, (list, tuple)):
        return AGAIN
    memories = {tensor.untyped_storage()._cdata for tensor in tensors_of(inputs)}
    layouts: list[Layout | None] = []
    for part in parts:
        if part is None:
            layouts.append(None)
            continue
        if type(part) is not Tensor or not part.is_meta or part.storage_offset():
            return AGAIN
        storage, layout = part.untyped_storage(), (part.shape, part.stride(), part.dtype)
        if storage._cdata in memories or storage.nbytes() != make(layout).untyped_storage().nbytes():
            return AGAIN
        memories.add(storage._cdata)
        layouts.append(layout)
    kind = None if isinstance(output, Tensor) else list if isinstance(output, list) else tuple
    return kind, layouts


def tensors_of(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)
