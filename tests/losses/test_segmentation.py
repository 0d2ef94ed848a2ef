from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from virtue_pl.losses.segmentation import dice_loss, focal_loss


def masks(number: int = 3, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(number, size, size), (torch.rand(number, size, size) < 0.3).float()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_equals_torchvisions(gamma):
    logits, targets = masks()
    expected = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma).flatten(1).mean(dim=1)
    torch.testing.assert_close(focal_loss(logits, targets, gamma), expected)


def test_focal_without_gamma_is_cross_entropy_also_for_soft_targets():
    logits, _ = masks(1)
    soft = torch.rand_like(logits)
    torch.testing.assert_close(focal_loss(logits, soft, 0.0)[0], binary_cross_entropy_with_logits(logits, soft))


def test_dice_equals_a_literal_loop():
    logits, targets = masks()
    for found, logit, target in zip(dice_loss(logits, targets), logits, targets, strict=True):
        overlap = predicted = expected = 0.0
        for score, truth in zip(logit.flatten().tolist(), target.flatten().tolist(), strict=True):
            probability = 1 / (1 + math.exp(-score))
            overlap, predicted, expected = overlap + probability * truth, predicted + probability, expected + truth
        assert found.item() == pytest.approx(1 - (2 * overlap + 1) / (predicted + expected + 1), abs=1e-5)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_right_is_zero_wrong_is_not_and_the_gradient_leads_there(loss):
    _, targets = masks()
    right = (2 * targets - 1) * 30
    assert loss(right, targets).max() < 1e-3
    assert loss(-right, targets).min() > 0.5
    logits = torch.zeros_like(targets, requires_grad=True)
    loss(logits, targets).sum().backward()
    assert torch.equal(logits.grad < 0, targets > 0)


def test_an_empty_mask_is_defined():
    logits = torch.full((1, 4, 4), -30.0, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(1, 4, 4)) + dice_loss(logits, torch.zeros(1, 4, 4))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-5) and logits.grad.isfinite().all()
