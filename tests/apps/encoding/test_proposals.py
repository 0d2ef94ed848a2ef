"""Proposed regions: each object of a drawn scene once, the surest first, and what is no object not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from virtue_pl.apps.encoding import ProposalOptions, proposals, propose_regions
from virtue_pl.metrics.mask_iou import expected_iou
from virtue_pl.preprocessing.segmentations import decode_segmentation
from virtue_pl.types import EmbeddingInput, VirtueError

GRID = 64
SHAPES = {"disc": (16, 16, 9, 8.0), "square": (44, 40, 12, 3.0), "small": (20, 50, 5, 5.0)}
"""Column, row and half extent of the drawn shapes on the map of masks, and how sure the model is of each."""


def draw(name: str) -> np.ndarray:
    column, row, half, _ = SHAPES[name]
    rows, columns = np.mgrid[:GRID, :GRID] + 0.5
    if name == "disc":
        return (columns - column) ** 2 + (rows - row) ** 2 < half**2
    return (abs(columns - column) < half) & (abs(rows - row) < half)


def segment_scene(embedder, items):
    """Return what a model that knows the scene takes each point for: its shape, with a speck of another object."""
    found = []
    for item in items:
        x, y = (item.prompt.points[0] * GRID).long().tolist()
        name = next((name for name in SHAPES if draw(name)[y, x]), None)
        logits = torch.full((GRID, GRID), -9.0)
        if name is None:
            logits = torch.full((GRID, GRID), -0.1) + 0.2 * (torch.arange(GRID * GRID).reshape(GRID, GRID) % 2)
        else:
            logits[torch.from_numpy(draw(name))] = SHAPES[name][3] - 0.01 * x
            logits[60:62, 60:62] = 2.0
        found.append(logits)
    return torch.stack(found)


@pytest.fixture
def scene() -> EmbeddingInput:
    pixels = np.full((128, 256, 3), 40, dtype=np.uint8)
    for number, name in enumerate(SHAPES):
        pixels[draw(name).repeat(2, axis=0).repeat(4, axis=1)] = 200 - 40 * number
    return EmbeddingInput("", (torch.from_numpy(pixels).permute(2, 0, 1),), image_keys=("scene",))


def test_each_shape_once_and_the_surest_first(embedder, scene, monkeypatch):
    monkeypatch.setattr(proposals, "segment", segment_scene)
    found = propose_regions(embedder, scene, ProposalOptions(points=16))
    assert len(found) == 3
    for proposal, name in zip(found, ("disc", "small", "square"), strict=True):
        drawn = draw(name).repeat(2, axis=0).repeat(4, axis=1)
        union = (proposal.mask | drawn).sum()
        assert (proposal.mask & drawn).sum() / union > 0.9, name
        column, row, half, _ = SHAPES[name]
        expected = [(column - half) / GRID, (row - half) / GRID, (column + half) / GRID, (row + half) / GRID]
        np.testing.assert_allclose(proposal.box, expected, atol=1.5 / GRID)
    qualities = [proposal.quality for proposal in found]
    assert qualities == sorted(qualities, reverse=True) and qualities[-1] > 0.7
    assert len(propose_regions(embedder, scene, ProposalOptions(points=16, most=1))) == 1
    assert propose_regions(embedder, scene, ProposalOptions(points=16, quality=1.0)) == []
    assert len(propose_regions(embedder, scene, ProposalOptions(points=16, max_area=0.05))) == 1


def test_repeats_are_those_of_a_literal_loop():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(12, 6, 6, generator=generator) > 0.4
    masks[3], masks[9] = masks[1], masks[5]
    order = torch.randperm(12, generator=generator).tolist()
    expected: list[int] = []
    for row in order:
        one = masks[row]
        ious = [float((one & masks[other]).sum() / (one | masks[other]).sum()) for other in expected]
        if all(iou < 0.5 for iou in ious):
            expected.append(row)
    assert proposals.drop_repeats(masks, order, 0.5) == expected
    assert 1 < len(expected) < 12


def test_expected_iou_is_that_of_drawn_objects():
    torch.manual_seed(0)
    probability = torch.rand(1, 5, 5)
    inside = probability > 0.5
    drawn = torch.rand(20_000, 5, 5) < probability
    shared = (drawn & inside).flatten(1).sum(dim=1).float().mean()
    union = (drawn | inside).flatten(1).sum(dim=1).float().mean()
    assert float(expected_iou(inside, probability)) == pytest.approx(float(shared / union), abs=0.01)
    assert float(expected_iou(torch.zeros(1, 5, 5, dtype=torch.bool), probability)) == 0


def test_the_model_is_asked_at_every_point_and_its_towers_once(embedder, scene, monkeypatch):
    runs = []
    towers = embedder.model.image_features
    monkeypatch.setattr(embedder.model, "image_features", lambda images: (runs.append(len(images)), towers(images))[1])
    monkeypatch.setattr(proposals, "PROMPTS_PER_BATCH", 3)
    together = proposals.predict_logits(embedder, scene, proposals.grid_points(2))
    assert runs == [1] and len(together) == 4
    monkeypatch.setattr(proposals, "PROMPTS_PER_BATCH", 64)
    torch.testing.assert_close(proposals.predict_logits(embedder, scene, proposals.grid_points(2)), together)
    (mask,) = embedder.predict_masks(
        [
            proposals.replace(
                scene,
                prompt=proposals.VisualPrompt(points=torch.tensor([[0.75, 0.25]]), point_labels=torch.ones(1).long()),
            )
        ]
    )
    assert torch.equal(together[1] > 0, mask)


def test_a_model_without_masks_is_named(embedder, scene, monkeypatch):
    monkeypatch.setattr(embedder.model.segmentation.backbone, "predict_masks", False, raising=False)
    segment = embedder.model.segment
    monkeypatch.setattr(embedder.model, "segment", lambda batch: proposals.replace(segment(batch), mask_logits=None))
    with pytest.raises(VirtueError, match="predicts no masks"):
        propose_regions(embedder, scene, ProposalOptions(points=1))


def test_run_lengths_are_coco_s():
    mask = np.random.default_rng(0).random((7, 11)) > 0.5
    found = json.loads(proposals.run_lengths(mask))
    assert np.array_equal(decode_segmentation(found, "mask", (7, 11)), mask)
