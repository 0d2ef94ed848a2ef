"""Outputs that are noted are those that torch gives, and nothing is noted that shares memory or depends on values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from virtue_pl.engine.estimation.meta_outputs import AGAIN, MetaOutputs
from virtue_pl.engine.estimation.step_trace import FORMULAS

aten: Any = torch.ops.aten


def tensor(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def layout(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.shape, output.stride(), output.dtype, output.untyped_storage().nbytes()
    return type(output), [layout(one) for one in output] if isinstance(output, (list, tuple)) else output


MATRIX = (3, 4)
FRESH = {
    "product of two types": (aten.mul.Tensor, lambda: (tensor(*MATRIX), tensor(4, dtype=torch.bfloat16)), {}),
    "product of numbers of two types": (aten.mul.Tensor, lambda: (tensor(*MATRIX, dtype=torch.int64), 1.0), {}),
    "the same numbers, whole": (aten.mul.Tensor, lambda: (tensor(*MATRIX, dtype=torch.int64), 1), {}),
    "a transposed one": (aten.exp.default, lambda: (tensor(*MATRIX).t(),), {}),
    "matrix product": (aten.mm.default, lambda: (tensor(*MATRIX), tensor(4, 5)), {}),
    "several outputs": (aten.native_layer_norm.default, lambda: (tensor(*MATRIX), [4], None, None, 1e-5), {}),
    "a list of tensors": (aten.cat.default, lambda: ([tensor(*MATRIX), tensor(2, 4)],), {}),
    "an option": (aten.sum.dim_IntList, lambda: (tensor(*MATRIX), [1]), {"dtype": torch.float64}),
}
SHARED = {
    "a view": (aten.view.default, lambda: (tensor(*MATRIX), [12]), {}),
    "a view that says nothing of it": (aten._unsafe_view.default, lambda: (tensor(*MATRIX), [12]), {}),
    "in place": (aten.add_.Tensor, lambda: (tensor(*MATRIX), 1), {}),
    "parts of one": (aten.split.Tensor, lambda: (tensor(*MATRIX), 2), {}),
}


@pytest.mark.parametrize("name", [*FRESH, *SHARED])
def test_outputs_are_those_of_torch(name: str) -> None:
    operation, inputs, options = (FRESH | SHARED)[name]
    outputs = MetaOutputs(FORMULAS)
    for other, make, more in FRESH.values():  # what stands beside it
        outputs(other, make(), more)
    arguments = inputs()
    results = [outputs(operation, arguments, options) for _ in range(2)]
    found = [one.value for one in results]
    expected = layout(operation(*inputs(), **options))
    assert [layout(one) for one in found] == [expected] * 2
    if name in FRESH:
        assert AGAIN not in outputs._noted.values()
    assert [one.is_new for one in results] == [name in FRESH] * 2, "noted by what stands beside it"
    assert [one.flops for one in results] == [120 if operation is aten.mm.default else 0] * 2
    first = found[1] if isinstance(found[1], torch.Tensor) else found[1][0]
    shares = first.untyped_storage()._cdata in {
        one.untyped_storage()._cdata for one in arguments if isinstance(one, torch.Tensor)
    }
    assert shares == (name in SHARED)


def test_tensors_with_values_are_computed() -> None:
    outputs = MetaOutputs(FORMULAS)
    for values in ([1, 0, 2], [0, 0, 3]):
        expected = torch.tensor(values).nonzero()
        assert torch.equal(outputs(aten.nonzero.default, (torch.tensor(values),), {}).value, expected)
    assert not outputs._noted
