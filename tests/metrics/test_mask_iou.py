from __future__ import annotations

import pytest
import torch

from virtue_pl.metrics.mask_iou import MaskIoU, mask_iou


def square(x1: int, y1: int, x2: int, y2: int, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_known_overlaps():
    predicted = torch.stack([square(0, 0, 4, 4), square(0, 0, 4, 4), square(0, 0, 2, 2), square(0, 0, 0, 0)])
    targets = torch.stack([square(0, 0, 4, 4), square(2, 0, 6, 4), square(4, 4, 6, 6), square(0, 0, 0, 0)])
    torch.testing.assert_close(mask_iou(predicted, targets), torch.tensor([1.0, 8 / 24, 0.0, 1.0]))


def test_every_mask_counts_the_same_whatever_the_batches():
    logits, targets = torch.randn(7, 8, 8), torch.rand(7, 8, 8) < 0.4
    metric = MaskIoU()
    for rows in (slice(0, 2), slice(2, 7)):
        metric.update(logits[rows], targets[rows].float())
    torch.testing.assert_close(metric.compute(), mask_iou(logits > 0, targets).mean())


def test_a_rank_without_masks_has_nothing_to_say():
    metric = MaskIoU()
    metric.update(torch.zeros(0, 2, 2), torch.zeros(0, 8, 8))
    assert metric.count == 0 and metric.compute().isnan()


def test_logits_are_judged_at_the_targets_resolution():
    target = square(2, 2, 6, 6)
    coarse = torch.where(square(1, 1, 3, 3, size=4), 1.0, -1.0)
    metric = MaskIoU()
    metric.update(coarse[None], target[None].float())
    assert metric.compute() == pytest.approx(1.0)


def test_states_of_ranks_add_up():
    """What torchmetrics does between processes: the states of the ranks are summed."""
    logits, targets = torch.randn(5, 8, 8), (torch.rand(5, 8, 8) < 0.4).float()
    ranks = [MaskIoU(), MaskIoU()]
    ranks[0].update(logits[:1], targets[:1])
    ranks[1].update(logits[1:], targets[1:])
    together = MaskIoU()
    together.update(logits, targets)
    merged = MaskIoU(
        dist_sync_fn=lambda state, group: [getattr(rank, name_of(ranks[0], state)) for rank in ranks],
        distributed_available_fn=lambda: True,
    )
    merged.total, merged.count, merged._update_count = ranks[0].total, ranks[0].count, 1
    torch.testing.assert_close(merged.compute(), together.compute())


def name_of(metric: MaskIoU, state: torch.Tensor) -> str:
    return "total" if state.is_floating_point() else "count"
