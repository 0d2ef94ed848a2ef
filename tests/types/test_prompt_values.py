"""Values of visual prompts: what is refused, whatever it is given as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virtue_pl.types import VirtueError, VisualPrompt

SIZE = (20, 30)


@pytest.mark.parametrize(
    "values", [torch.randn(1, 4, 4), torch.rand(1, 4, 4), torch.full((1, 4, 4), float("nan")), np.full((1, 4, 4), 255)]
)
def test_logits_probabilities_and_grey_values_are_no_masks(values: Any) -> None:
    for build in (lambda: VisualPrompt(masks=values), lambda: VisualPrompt.from_pixels(masks=values, size=(4, 4))):
        with pytest.raises(VirtueError, match="expected booleans, or 0 and 1: threshold them first, as in `masks > 0`"):
            build()


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_zeros_and_ones_are_masks_of_any_type(kind: Any) -> None:
    inside = np.eye(4)[None].astype(kind)
    for prompt in (VisualPrompt(masks=inside), VisualPrompt.from_pixels(masks=inside, size=(4, 4))):  # type: ignore[arg-type]
        assert prompt.masks.dtype == torch.bool and prompt.masks.sum() == 4


def test_a_mask_of_two_dimensions_is_told_so() -> None:
    with pytest.raises(VirtueError, match=r"masks of shape \[4, 4\], expected \[masks, height, width\]"):
        VisualPrompt(masks=torch.ones(4, 4, dtype=torch.bool))


@pytest.mark.parametrize("given_as", [{"boxes": [[2, 3, 8, 9]]}, {"points": [[5, 5]], "point_labels": [1]}])
def test_pixels_in_the_constructor_are_refused(given_as: dict[str, Any]) -> None:
    tensors = {name: torch.tensor(value) for name, value in given_as.items()}
    with pytest.raises(VirtueError, match="expected coordinates from 0 to 1: those in pixels enter by VisualPrompt"):
        VisualPrompt(**tensors)


@pytest.mark.parametrize(
    "image", [Image.new("RGB", SIZE[::-1]), np.zeros((*SIZE, 3), np.uint8), torch.zeros(3, *SIZE, dtype=torch.uint8)]
)
def test_an_image_has_its_own_size(image: Any) -> None:
    expected = VisualPrompt.from_pixels(boxes=[[3, 2, 15, 10]], size=SIZE)
    found = VisualPrompt.from_pixels(boxes=[[3, 2, 15, 10]], image=image)
    assert torch.equal(found.boxes, expected.boxes) and found.size == SIZE
    with pytest.raises(VirtueError, match=r"size is \(30, 20\), but the image has \(20, 30\)"):
        VisualPrompt.from_pixels(boxes=[[3, 2, 15, 10]], size=SIZE[::-1], image=image)


ANYTHING = st.one_of(
    st.none(), st.text(max_size=3), st.floats(), st.integers(), st.lists(st.floats(width=32), max_size=5)
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    boxes=st.lists(ANYTHING, max_size=3),
    points=st.lists(ANYTHING, max_size=3),
    labels=st.none() | st.lists(st.integers(-1, 2), max_size=3),
    masks=st.none() | st.lists(ANYTHING, max_size=2),
)
def test_anything_is_a_prompt_or_a_named_fault(boxes: Any, points: Any, labels: Any, masks: Any) -> None:
    try:
        prompt = VisualPrompt.from_pixels(boxes, points, labels, masks, size=SIZE)
    except VirtueError as error:
        assert "\n" not in str(error)
    else:
        for values in (prompt.boxes, prompt.points):
            assert bool(((values >= 0) & (values <= 1)).all())
