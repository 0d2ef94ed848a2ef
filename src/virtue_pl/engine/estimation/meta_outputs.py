"""Outputs of operations on the meta device, worked out once for inputs of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype of a tensor that has a memory of its own."""
META = torch.device("meta")


class Output(NamedTuple):
    """Value that an operation returns, what it counts, and whether all of its tensors are new.

    value: a tensor, or a list or tuple of tensors. flops: its floating-point operations. is_new: no tensor of it shares
    memory with another.

    Example:
        >>> Output(torch.ones(2), 0, True).value.shape
        torch.Size([2])
    """

    value: Any
    flops: int
    is_new: bool


class MetaOutputs:
    """Runs operations on the meta device, each once for all inputs that are alike; torch takes much of it in Python.

    Alike are equal numbers, and tensors of equal sizes, strides and dtypes. Only what has memory of its own is made
    from what was noted: views, operations in place and tensors on other devices go through torch each time. Modes for
    functions are off inside an operation, as autocast is on a device.

    Args:
        formulas: from an operation to the formula of its floating-point operations, with torch's arguments.

    Example:
        >>> ones = torch.ones(2, 3, device="meta")
        >>> MetaOutputs({})(torch.ops.aten.mul.Tensor, (ones, ones), {}).value.shape
        torch.Size([2, 3])
    """

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        self._formulas = formulas
        self._noted: dict[Any, Any] = {}
        self._operations: dict[int, tuple[Any, bool, Callable[..., int] | None]] = {}

    def __call__(self, operation: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Output:
        traits = self._operations.get(id(operation))  # an operation's own hash is computed in Python
        if traits is None:
            traits = operation, shares_memory(operation), self._formulas.get(operation._overloadpacket)
            self._operations[id(operation)] = traits
        with torch._C.DisableTorchFunction():
            if traits[1]:
                return self.run(operation, arguments, options)
            try:
                key: Any = (id(operation), *map(describe, arguments))
                if options:
                    key += tuple((name, describe(options[name])) for name in options)
                noted = self._noted.get(key)
            except (NotOnMeta, TypeError):
                return self.run(operation, arguments, options)
            if noted is None:
                output = self.run(operation, arguments, options)
                layouts = layouts_of(output.value, (*arguments, *options.values()))
                self._noted[key] = layouts if layouts is AGAIN else (*layouts, output.flops)
                return output
            if noted is AGAIN:
                return self.run(operation, arguments, options)
            kind, layouts, flops = noted
            if kind is None:
                return Output(make(layouts[0]), flops, True)
            return Output(kind([None if one is None else make(one) for one in layouts]), flops, True)

    def run(self, operation: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Output:
        """Return an operation's output by torch."""
        value, formula = operation(*arguments, **options), self._operations[id(operation)][2]
        flops = 0 if formula is None else formula(*arguments, **options, out_val=value)
        return Output(value, flops, False)


def shares_memory(operation: Any) -> bool:
    """Return whether an operation changes its inputs or shares memory with them, whatever they are.

    Example:
        >>> shares_memory(torch.ops.aten.view.default), shares_memory(torch.ops.aten.mul.Tensor)
        (True, False)
    """
    schema = operation._schema
    return bool(schema.is_mutable) or any(one.alias_info is not None for one in schema.returns)


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
    return torch.empty_strided(sizes, strides, dtype=dtype, device=META)


def layouts_of(output: Any, inputs: Sequence[Any]) -> Any:
    """Return the type of an operation's output, None for a tensor, and its tensors' layouts.

    `AGAIN` for one that shares memory with its inputs, returns more than tensors, or more memory than a tensor of that
    layout has.
    """
    parts = [output] if isinstance(output, Tensor) else output
    if not isinstance(parts, (list, tuple)):
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
