"""How training queries are pointed at, where some of the regions have no mask."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator, draw, point_at
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.types import EmbeddingInput, Region, Sample, VirtueError

MODES = {"box": 0.5, "point": 0.3, "mask": 0.2}
BOX = torch.tensor([0.1, 0.1, 0.5, 0.6])
IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def collator(modes: dict[str, float]) -> ContrastiveCollator:
    processor: Any = SimpleNamespace()
    return ContrastiveCollator(processor, VirtueFormatter(), None, modes, ["box"])


def sample(mask: bool, region: bool = True) -> Sample:
    found = Region(BOX, torch.ones(8, 8, dtype=torch.bool) if mask else None) if region else None
    return Sample("s/0", "s", EmbeddingInput("what?", (IMAGE,)), EmbeddingInput("that"), (), found)


def test_a_row_without_a_mask_is_pointed_at_by_the_other_modes_in_their_proportions() -> None:
    torch.manual_seed(0)
    counts = Counter(collator(MODES).draw_modes([sample(mask=False)] * 4000))
    assert counts.keys() == {"box", "point"} and counts["box"] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)


def test_rows_with_masks_are_drawn_as_they_are_without_any_other() -> None:
    torch.manual_seed(3)
    expected = draw(MODES, 64)
    torch.manual_seed(3)
    samples = [sample(mask=row % 2 == 0, region=row % 3 > 0) for row in range(64)]
    found = collator(MODES).draw_modes(samples)
    changed = [row for row in range(64) if found[row] != expected[row]]
    assert changed and all(samples[row].region is not None and expected[row] == "mask" for row in changed)
    assert all(samples[row].region.mask is None for row in changed)  # type: ignore[union-attr]


def test_a_mask_that_nothing_stands_in_for_is_refused() -> None:
    row = sample(mask=False)
    assert collator({"mask": 1.0}).draw_modes([row]) == ["mask"]
    with pytest.raises(VirtueError, match="needs regions with masks"):
        point_at(row.query, row.region, "mask", None)
