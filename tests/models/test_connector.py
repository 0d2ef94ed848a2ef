from __future__ import annotations

import pytest
import torch

from virtue_pl.models.connector import (
    Connector,
    ConvolutionConnector,
    MaskConnector,
    direction_cones,
    mask_statistics,
    mask_weights,
    shorten,
)
from virtue_pl.types import FeatureWidths, SegmentFeatures, VirtueError


def features(prompts: int = 3) -> SegmentFeatures:
    torch.manual_seed(0)
    return SegmentFeatures(
        torch.randn(prompts, 8, 8, 8),
        torch.randn(prompts, 12, 4, 4),
        5 * torch.randn(prompts, 16, 16),
        torch.randn(8, 8, 8),
    )


@pytest.mark.parametrize(
    ("connector", "tokens"),
    [(ConvolutionConnector(FeatureWidths(8, 12), 10, stride=4), 4), (MaskConnector(FeatureWidths(8, 12), 10), 10),
     (MaskConnector(FeatureWidths(8, 12), 10, grid_size=1, directions=False), 3)],
)  # fmt: skip
def test_shapes_and_gradients(connector: Connector, tokens: int) -> None:
    output = connector(features())
    assert output.tokens.shape == (3, tokens, 10) and output.summary is None
    output.tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in connector.parameters())


def test_a_row_does_not_depend_on_the_others() -> None:
    connector, all_rows = MaskConnector(FeatureWidths(8, 12), 10), features()
    alone = SegmentFeatures(
        all_rows.embedding[1:2], all_rows.image[1:2], all_rows.mask_logits[1:2], all_rows.image_positions
    )
    assert torch.allclose(connector(all_rows).tokens[1:2], connector(alone).tokens, atol=1e-6)


def test_the_paper_connector_gives_256_tokens_row_by_row() -> None:
    connector = ConvolutionConnector(FeatureWidths(4, 1), 6)
    embedding = torch.zeros(1, 4, 64, 64)
    embedding[:, :, 0, 60] = 1.0
    tokens = connector(
        SegmentFeatures(embedding, torch.zeros(1, 1, 1, 1), torch.zeros(1, 4, 4), torch.zeros(4, 64, 64))
    ).tokens
    changed = (tokens - tokens[:, -1:]).abs().sum(dim=-1) > 1e-6
    assert tokens.shape == (1, 256, 6)
    assert changed.nonzero().tolist() == [[0, 15]]


def test_a_summary_is_nothing_at_first_and_learns() -> None:
    connector = MaskConnector(FeatureWidths(8, 12), 10, summary=True)
    summary = connector(features()).summary
    assert summary is not None and summary.shape == (3, 10) and not summary.any()
    summary.sum().backward()
    assert connector.summary is not None and len(connector.summary.directions) == 4
    maps = [connector.summary.inside, connector.summary.outside, *connector.summary.directions]
    assert all(into[-1].weight.grad.abs().sum() > 0 for into in maps)


def test_a_summary_stays_shorter_than_its_limit() -> None:
    torch.manual_seed(0)
    connector = MaskConnector(FeatureWidths(8, 12), 10, summary=True, summary_limit=2.0)
    assert connector.summary is not None
    torch.nn.init.normal_(connector.summary.inside[-1].weight, std=100.0)
    summary = connector(features()).summary
    assert summary is not None and ((summary.norm(dim=1) > 1.9) & (summary.norm(dim=1) < 2.0)).all()


def test_a_short_vector_keeps_its_length_and_a_long_one_its_direction() -> None:
    vectors = torch.tensor([[0.03, 0.04], [30.0, 40.0]])
    short, long = shorten(vectors, limit=3.0)
    assert torch.allclose(short, vectors[0], rtol=1e-3) and torch.allclose(long, torch.tensor([1.8, 2.4]), atol=0.01)


def test_mask_statistics_and_cones_know_where_the_mask_is() -> None:
    logits = torch.full((1, 16, 16), -20.0)
    logits[:, 4:8, 0:4] = 20.0
    statistics = mask_statistics(mask_weights(logits, (16, 16)))
    assert statistics[0, :2].tolist() == pytest.approx([2 / 16, 6 / 16], abs=1e-4)
    assert statistics[0, 4].item() == pytest.approx(1 / 16, abs=1e-4)
    left, right, above, below = direction_cones(statistics[:, :2], (16, 16))[0]
    assert right[6, 12] == 1 and left[6, 12] == 0
    assert below[15, 2] == 1 and above[0, 2] == 1
    assert (left + right + above + below).max() == 1


@pytest.mark.parametrize("limit", [0.0, -3.0, float("nan")])
def test_a_limit_that_is_no_length_is_refused(limit: float) -> None:
    with pytest.raises(VirtueError, match=rf"connector\.summary_limit is {limit}, expected more than 0"):
        MaskConnector(FeatureWidths(8, 12), 10, summary=True, summary_limit=limit)
