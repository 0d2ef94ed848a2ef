from __future__ import annotations

import pytest
import torch

from virtue_pl.adapters.dropout import LEVELS, QuickDropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("share", "shape"), [(0.1, (301, 1001)), (0.5, (3, 7, 9999)), (0.93, (400_003,))])
def test_each_element_is_dropped_as_often_as_it_says(share: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Four elements share a draw: each of the four is dropped alike, and by itself."""
    torch.manual_seed(0)
    found = QuickDropout(share)(torch.ones(shape, dtype=dtype)).flatten()
    rounded = round(share * LEVELS) / LEVELS
    assert found.dtype == dtype and set(found.tolist()) == {0.0, torch.tensor(1 / (1 - rounded), dtype=dtype).item()}
    dropped = (found == 0)[: len(found) // 4 * 4].view(-1, 4).float()
    deviation = (share * (1 - share) / len(dropped)) ** 0.5
    assert ((dropped.mean(dim=0) - share).abs() < 5 * deviation).all()
    together = dropped.T @ dropped / len(dropped)
    assert ((together - share**2).abs().fill_diagonal_(0) < 5 * deviation).all()


def test_a_restored_state_drops_the_same_and_gradients_follow() -> None:
    inputs, layer = torch.randn(5, 13, requires_grad=True), QuickDropout(0.4)
    state = torch.get_rng_state()
    first = layer(inputs)
    torch.set_rng_state(state)
    again = layer(inputs)
    assert torch.equal(first, again) and not torch.equal(first, layer(inputs))
    first.backward(torch.ones_like(first))
    torch.testing.assert_close(inputs.grad, torch.where(first == 0, 0.0, LEVELS / (LEVELS - round(0.4 * LEVELS))))


@pytest.mark.parametrize("share", [0.0, 1e-7, 1.0])
def test_at_the_ends_it_is_the_plain_one(share: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50)
    state = torch.get_rng_state()
    found = QuickDropout(share)(inputs)
    torch.set_rng_state(state)
    assert torch.equal(found, torch.nn.functional.dropout(inputs, share))


def test_in_evaluation_it_does_nothing() -> None:
    inputs = torch.randn(50)
    assert torch.equal(QuickDropout(0.5).eval()(inputs), inputs)
