from __future__ import annotations

import pytest
import torch

from virtue_pl.backbones.vlm.pooling import FirstTokenPooling, LastTokenPooling, MeanPooling, Pooling

STATES = torch.arange(8.0).view(2, 4, 1)
RIGHT_PADDED = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
LEFT_PADDED = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "right", "left"),
    [
        (MeanPooling(), [1.0, 4.5], [2.0, 6.5]),
        (LastTokenPooling(), [2.0, 5.0], [3.0, 7.0]),
        (FirstTokenPooling(), [0.0, 4.0], [1.0, 6.0]),
    ],
)
def test_only_real_tokens_count_on_either_side(pooling: Pooling, right: list[float], left: list[float]) -> None:
    assert pooling(STATES, RIGHT_PADDED)[:, 0].tolist() == right
    assert pooling(STATES, LEFT_PADDED)[:, 0].tolist() == left
