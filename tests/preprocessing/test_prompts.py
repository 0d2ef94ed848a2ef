from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from virtue_pl.preprocessing.prompts import (
    box_of_mask,
    click_inside,
    erode,
    flip_horizontally,
    grid_points,
    prompt_region,
)
from virtue_pl.types import Region, VirtueError, VisualPrompt

sizes = st.tuples(st.integers(8, 300), st.integers(8, 300))
shares = st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.05, 0.2), st.floats(0.05, 0.2))


def pixel_box(size: tuple[int, int], share: tuple[float, float, float, float]) -> list[float]:
    height, width = size
    x, y, w, h = share
    return [x * width, y * height, (x + w) * width, (y + h) * height]


@given(sizes, sizes, shares)
@settings(max_examples=60, deadline=None)
def test_a_prompt_survives_a_resize(
    size: tuple[int, int], new: tuple[int, int], share: tuple[float, float, float, float]
) -> None:
    box = pixel_box(size, share)
    scaled = [
        box[0] * new[1] / size[1],
        box[1] * new[0] / size[0],
        box[2] * new[1] / size[1],
        box[3] * new[0] / size[0],
    ]
    before = VisualPrompt.from_pixels(boxes=[box], points=[box[:2]], size=size)
    after = VisualPrompt.from_pixels(boxes=[scaled], points=[scaled[:2]], size=new)
    assert torch.allclose(before.boxes, after.boxes, atol=1e-5)
    assert torch.allclose(before.points, after.points, atol=1e-5)


@given(sizes, shares, st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_flipping_twice_changes_nothing_and_once_mirrors(
    size: tuple[int, int], share: tuple[float, float, float, float], seed: int
) -> None:
    masks = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) > 0.5
    masks[0, 0, 0] = True
    box = pixel_box(size, share)
    prompt = VisualPrompt.from_pixels(boxes=[box], points=[box[:2]], masks=masks, size=size)
    once, twice = flip_horizontally(prompt), flip_horizontally(flip_horizontally(prompt))
    assert torch.allclose(twice.boxes, prompt.boxes, atol=1e-6) and torch.allclose(
        twice.points, prompt.points, atol=1e-6
    )
    assert torch.equal(twice.masks, prompt.masks)
    assert (once.boxes[:, 0] <= once.boxes[:, 2]).all()
    assert torch.allclose(once.boxes[:, 0] + prompt.boxes[:, 2], torch.ones(1), atol=1e-6)
    assert torch.allclose(
        box_of_mask(once.masks[0]),
        flip_horizontally(VisualPrompt(boxes=box_of_mask(prompt.masks[0])[None])).boxes[0],
        atol=1e-6,
    )


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_a_click_lies_inside_and_repeats(seed: int) -> None:
    noise = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    mask = interpolate(noise, size=(40, 60), mode="bilinear")[0, 0] > 0.5
    mask[20, 30] = True
    region = Region(box_of_mask(mask), mask)
    x, y = click_inside(region, torch.Generator().manual_seed(seed)).tolist()
    assert mask[int(y * 40), int(x * 60)]
    again = prompt_region(region, "point", torch.Generator().manual_seed(seed))
    assert again.points[0].tolist() == [x, y]


def test_a_click_without_a_mask_lies_in_the_inner_half_of_the_box() -> None:
    x, y = click_inside(Region(torch.tensor([0.2, 0.4, 0.6, 0.8])), torch.Generator().manual_seed(0)).tolist()
    assert 0.3 <= x <= 0.5 and 0.5 <= y <= 0.7


def test_eroding_takes_the_rim_away() -> None:
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[2:7, 2:7] = True
    assert erode(mask, 1).nonzero().tolist() == [[i, j] for i in range(3, 6) for j in range(3, 6)]


def test_the_grid_is_the_published_one() -> None:
    grid = grid_points(3)
    assert torch.allclose(grid.points[:4], torch.tensor([[1, 1], [3, 1], [5, 1], [1, 3]]) / 6)
    assert grid.point_labels.tolist() == [1] * 9


def test_modes_that_cannot_be_are_refused() -> None:
    region = Region(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    with pytest.raises(VirtueError, match="leave 'mask' out"):
        prompt_region(region, "mask")
    with pytest.raises(VirtueError, match="expected one of box"):
        prompt_region(region, "circle")
    with pytest.raises(VirtueError, match="mask is empty"):
        box_of_mask(torch.zeros(3, 3, dtype=torch.bool))
    assert prompt_region(region, "none").is_empty
