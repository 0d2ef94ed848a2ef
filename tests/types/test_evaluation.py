"""Regions of evaluation rows: in little memory, and to the pixel what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virtue_pl.types import CompactRegion, EvaluationRow, Region, VisualPrompt


@pytest.mark.parametrize("seed", range(8))
def test_a_compact_region_is_the_region(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 9, 2)
    mask = torch.from_numpy(generator.random((height, width)) < (0, 0.1, 0.5, 1)[seed % 4])
    region = Region(torch.tensor([0.1, 0.2, 0.5, 0.6]), mask, VisualPrompt(torch.rand(1, 4).sort().values))
    found = CompactRegion.pack(region).unpack()
    assert found.mask is not None and torch.equal(found.mask, mask) and found.mask.is_contiguous()
    assert torch.equal(found.box, region.box) and found.given is region.given
    assert CompactRegion.pack(Region(region.box)).unpack().mask is None


def test_rows_hold_no_pixels_of_masks() -> None:
    """A photograph's region, an ellipse of a third of 12 megapixels, in kilobytes."""
    down, across = np.ogrid[-1:1:3024j, -1:1:4032j]  # type: ignore[misc]
    region = Region(torch.rand(4), torch.from_numpy(down**2 + across**2 < 0.4))
    row = EvaluationRow("scar", 0, "", "", "", "key", (3024, 4032), CompactRegion.pack(region), (), {})
    assert row.compact_region is not None and row.compact_region.runs is not None
    assert row.compact_region.runs.nbytes < 32_000
    found = row.region
    assert found is not None and found.mask is not None and torch.equal(found.mask, region.mask)  # type: ignore[arg-type]
