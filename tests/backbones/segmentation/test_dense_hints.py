from __future__ import annotations

import pytest
import torch

from virtue_pl.backbones.segmentation.dense_hints import DenseHints, ObjectSimilarity
from virtue_pl.types import PromptTokens, VisualPrompt

SIZE = (100, 200)


def test_a_box_covers_its_share_of_each_cell() -> None:
    covered = DenseHints(8, 16).maps(VisualPrompt.from_pixels(boxes=[[12.5, 0, 50, 25]], size=SIZE))[0]
    assert covered[0].tolist() == [0, 1, 1, 1] + 12 * [0]
    assert covered.sum() == 3 * 4
    half = DenseHints(8, 16).maps(VisualPrompt.from_pixels(boxes=[[0, 0, 6.25, 6.25]], size=SIZE))[0]
    assert half[0, 0] == pytest.approx(0.5) and half.sum() == pytest.approx(0.5)


def test_points_are_gaussians_on_the_map_of_their_label() -> None:
    prompt = VisualPrompt.from_pixels(points=[[50, 50], [150, 25]], labels=[1, 0], size=SIZE)
    _, inside, outside, _ = DenseHints(8, 32).maps(prompt)
    assert divmod(int(inside.argmax()), 32) in {(15, 7), (15, 8), (16, 7), (16, 8)}
    assert divmod(int(outside.argmax()), 32) in {(7, 23), (7, 24), (8, 23), (8, 24)}
    assert inside.max() <= 1 and outside.max() <= 1


def test_focus_is_what_boxes_inside_points_and_masks_touch() -> None:
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, :50, :100] = True
    prompts = [
        VisualPrompt.from_pixels(masks=masks, size=SIZE),
        VisualPrompt.from_pixels(boxes=[[0, 0, 100, 50]], size=SIZE),
        VisualPrompt.from_pixels(points=[[150, 75]], labels=[0], size=SIZE),
        VisualPrompt(),
    ]
    dense, drawn = DenseHints(8, 16)(prompts, torch.device("cpu"))
    nothing = torch.zeros(0)
    focus = PromptTokens(nothing, nothing, dense, torch.zeros(8, 4, 4), nothing, drawn).focus
    assert dense.shape == (4, 8, 4, 4) and focus is not None and focus.shape == (4, 4, 4)
    assert torch.allclose(focus[0], focus[1], atol=0.1) and focus[1].sum() == pytest.approx(4.0)
    assert focus[2].sum() == 0 and focus[3].sum() == 0
    assert DenseHints(8, 16)([], torch.device("cpu"))[0].shape == (0, 8, 4, 4)


def test_similar_cells_are_found_and_every_parameter_learns() -> None:
    image = torch.zeros(1, 6, 4, 4)
    image[:, 0] = 1.0
    image[:, :, 1:3, 1:3] = 0.0
    image[:, 1, 1:3, 1:3] = 1.0
    focus = torch.zeros(1, 4, 4)
    focus[0, 1, 1] = 1.0
    module = ObjectSimilarity(6, 8)
    shown, likeness = module(image, torch.randn(1, 8, 4, 4), focus, torch.zeros(1, dtype=torch.long))
    along = ((likeness * module.alike[:, None, None]).sum(dim=1)[0] / module.alike.square().sum()).detach()
    assert along[1:3, 1:3].min() == pytest.approx(1.0, abs=1e-5)
    assert along[0].max() < 0.999
    (shown.sum() + (likeness * torch.randn(8, 4, 4)).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def one_by_one(hints: DenseHints, prompt: VisualPrompt) -> torch.Tensor:
    """The maps of one prompt, by what they are: sums over boxes and over points of one label, up to 1."""
    size, edges = hints.map_size, torch.arange(hints.map_size)
    x1, y1, x2, y2 = (prompt.boxes * size).unbind(dim=1)
    across = (torch.minimum(edges + 1, x2[:, None]) - torch.maximum(edges, x1[:, None])).clamp(0, 1)
    down = (torch.minimum(edges + 1, y2[:, None]) - torch.maximum(edges, y1[:, None])).clamp(0, 1)
    maps = [(down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1)]
    centres = (edges + 0.5) / size
    for label in (1, 0):
        points = prompt.points[prompt.point_labels == label]
        across, down = (torch.exp(-0.5 * ((centres - points[:, [axis]]) / hints.sigma) ** 2) for axis in (0, 1))
        maps.append((down[:, :, None] * across[:, None, :]).sum(dim=0).clamp(max=1))
    union = prompt.masks.any(dim=0)[None, None].float()
    maps.append(torch.nn.functional.interpolate(union, size=(size, size), mode="bilinear", antialias=True)[0, 0])
    return torch.stack(maps)


def test_prompts_are_drawn_together_as_they_are_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for row in range(24):
        corners = torch.rand(row % 4, 2, 2, generator=generator).sort(dim=1).values
        points = torch.rand(row % 10, 2, generator=generator)
        labels = torch.randint(0, 2, (row % 10,), generator=generator)
        masks = torch.rand(row % 3, 20 + 10 * (row % 2), 30, generator=generator) > 0.7
        prompts.append(VisualPrompt(corners.flatten(1), points, labels, masks))
    hints = DenseHints(8, 16)
    together = hints.maps_of(prompts)
    assert torch.equal(together, torch.stack([one_by_one(hints, prompt) for prompt in prompts]))
    assert torch.equal(hints.maps(prompts[5]), together[5])
