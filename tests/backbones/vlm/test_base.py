"""Tokens put in positions without a mask being read back: the same numbers and gradients as with one."""

from __future__ import annotations

import pytest
import torch

from fixtures.device_work import DeviceWork
from fixtures.recorded import GOLDEN
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.vlm.base import add_at, is_frozen, scatter_tokens, token_positions
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone

MASK = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])


def test_positions_are_those_of_the_chosen_in_order() -> None:
    assert token_positions(MASK, 4).tolist() == MASK.flatten().nonzero()[:, 0].tolist()
    assert token_positions(MASK & False, 0).tolist() == []
    assert token_positions(MASK | True, 9).tolist() == list(range(9))


@pytest.mark.parametrize("count", [3, 5])
def test_another_number_than_there_is_room_for_is_an_error(count: int) -> None:
    """Nothing is put elsewhere in silence."""
    with pytest.raises((IndexError, RuntimeError)):
        scatter_tokens(torch.zeros(3, 3, 2), MASK, torch.ones(count, 2))


def test_placing_is_a_masked_scatter_to_the_bit() -> None:
    embeds, tokens, weights = (torch.randn(size).requires_grad_() for size in ((3, 3, 2), (4, 2), (3, 3, 2)))
    expected = embeds.masked_scatter(MASK[..., None], tokens)
    gradients = torch.autograd.grad((expected * weights).sum(), (embeds, tokens))
    with DeviceWork() as done:
        found = scatter_tokens(embeds, MASK, tokens)
        ours = torch.autograd.grad((found * weights).sum(), (embeds, tokens))
    assert torch.equal(found, expected) and all(map(torch.equal, ours, gradients)) and not done.reads


def test_adding_is_that_at_a_mask_to_the_bit() -> None:
    states, increments = torch.randn(3, 3, 2).requires_grad_(), torch.randn(4, 2)
    expected = states.clone()
    expected[MASK] = states[MASK] + increments
    (gradient,) = torch.autograd.grad(expected.square().sum(), states)
    with DeviceWork() as done:
        found = add_at(states, token_positions(MASK, 4), increments)
        (ours,) = torch.autograd.grad(found.square().sum(), states)
    assert torch.equal(found, expected) and torch.equal(ours, gradient) and not done.reads


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_trained_is_in_training_mode_and_what_is_frozen_never_is(adapted: bool) -> None:
    backbone = Qwen2VLBackbone(str(GOLDEN / "qwen2_vl"))
    if adapted:
        LoRA(targets=["q_proj"], dropout=0.1).adapt(backbone)
    for model in (backbone, backbone.eval().train()):
        in_layers = {module for layer in model.layers for module in layer.modules()}
        assert all(module.training for module in in_layers)
        frozen = [module for module in model.modules() if module not in in_layers and is_frozen(module)]
        assert model.model.visual in frozen and not any(module.training for module in frozen)
    assert not any(module.training for module in backbone.eval().modules())
