from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from virtue_pl.backbones.segmentation.dense_hints import DenseHints
from virtue_pl.models.connector import MaskConnector, pool
from virtue_pl.models.roi_connector import RoiConnector
from virtue_pl.types import FeatureWidths, PromptTokens, SegmentFeatures, VirtueError, VisualPrompt

WIDTHS = FeatureWidths(8, 12)


def features(*boxes: list[float]) -> SegmentFeatures:
    """Of a 32x32 image on 4x4 cells, with the given boxes in pixels as prompts."""
    prompts = [VisualPrompt.from_pixels(boxes=[box], size=(32, 32)) for box in boxes]
    dense, drawn = DenseHints(8, map_size=16)(prompts, torch.device("cpu"))
    count, nothing = len(boxes), torch.zeros(0)
    focus = PromptTokens(nothing, nothing, dense, torch.zeros(8, 4, 4), nothing, drawn).focus
    return SegmentFeatures(
        torch.randn(count, 8, 4, 4),
        torch.randn(count, 12, 4, 4),
        torch.randn(count, 16, 16),
        torch.randn(8, 4, 4),
        focus,
    )


def test_a_cell_weighs_what_the_box_covers_of_it() -> None:
    weights = RoiConnector(WIDTHS, 10).object_weights(features([8, 8, 20, 16], [0, 0, 32, 32]))
    assert weights[0].tolist() == [[0, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert bool((weights[1] == 1).all())


def test_pooling_is_the_mean_over_the_box() -> None:
    found = features([8, 8, 24, 16])
    pooled = pool(found.image, RoiConnector(WIDTHS, 10).object_weights(found))
    assert torch.allclose(pooled, found.image[:, :, 1, 1:3].mean(dim=-1), atol=1e-6)


def test_the_predicted_mask_plays_no_part_and_the_box_does() -> None:
    connector, found = RoiConnector(WIDTHS, 10), features([8, 8, 24, 16])
    with torch.no_grad():
        tokens = connector(found).tokens
        assert tokens.shape == MaskConnector(WIDTHS, 10)(found).tokens.shape
        assert torch.equal(tokens, connector(replace(found, mask_logits=-found.mask_logits)).tokens)
        assert not torch.allclose(tokens, connector(replace(found, focus=features([0, 0, 8, 8]).focus)).tokens)


def test_without_the_prompts_area_it_says_what_to_change() -> None:
    with pytest.raises(VirtueError, match="set dense_hints"):
        RoiConnector(WIDTHS, 10)(replace(features([0, 0, 8, 8]), focus=None))
