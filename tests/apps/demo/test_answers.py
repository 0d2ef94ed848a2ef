"""Answers of a model: equal to those of the embedder, whatever was asked before."""

from __future__ import annotations

import numpy as np
import pytest

from virtue_pl.apps.demo.answers import GRID, IMAGES
from virtue_pl.types import VirtueError, VisualPrompt

SIZE = (60, 90)
CAPTIONS = ["a cat", "a dog", "two birds"]


def prompt(*box: float) -> VisualPrompt:
    return VisualPrompt.from_pixels(boxes=[list(box)], size=SIZE)


def test_ranks_are_those_of_the_embedder(answerer, shelf, embedder):
    image, region = shelf.load("0.png"), prompt(5, 5, 40, 50)
    texts = embedder.encode(CAPTIONS)
    before = texts @ embedder.encode("Find the caption.", image.pixels)[0]
    after = texts @ embedder.encode("Find the caption.", image.pixels, region)[0]
    rows = answerer.rank(image, [region], CAPTIONS)
    assert [row.caption for row in rows] == [CAPTIONS[number] for number in np.argsort(-after)]
    for row in rows:
        number = CAPTIONS.index(row.caption)
        np.testing.assert_allclose([row.before, row.after], [before[number], after[number]], atol=1e-5)
        assert row.rank_before == 1 + int((before > before[number]).sum())


def test_without_a_prompt_nothing_moves(answerer, shelf):
    assert {row.lifted_by for row in answerer.rank(shelf.load("0.png"), [], CAPTIONS)} == {0}


def test_captions_are_asked_once_and_without_white_space(answerer, shelf):
    rows = answerer.rank(shelf.load("0.png"), [], [" a cat ", "a cat", "", "  "])
    assert [row.caption for row in rows] == ["a cat"]


@pytest.mark.parametrize("captions", [[], [""], ["  ", ""]])
def test_no_captions_are_asked_for(answerer, shelf, captions):
    with pytest.raises(VirtueError, match="there are no captions"):
        answerer.rank(shelf.load("0.png"), [], captions)


def test_masks_are_those_of_each_prompt(answerer, shelf):
    regions = [prompt(5, 5, 40, 50), prompt(50, 10, 80, 50)]
    image = shelf.load("0.png")
    both = answerer.masks(image, regions)
    assert len(both) == 2
    for region, mask in zip(regions, both, strict=True):
        (alone,) = answerer.masks(image, [region])
        assert (mask == alone).all()
    assert answerer.masks(image, []) == []


def test_the_map_is_the_cosine_with_a_click_on_each_point(answerer, shelf, embedder):
    image, region = shelf.load("0.png"), prompt(5, 5, 40, 50)
    values = answerer.similarity(image, [region])
    assert values.shape == (GRID, GRID)
    row, column = 2, 5
    point = [(column + 0.5) / GRID * SIZE[1], (row + 0.5) / GRID * SIZE[0]]
    click = embedder.encode("", image.pixels, VisualPrompt.from_pixels(points=[point], size=SIZE))[0]
    expected = float(click @ embedder.encode("", image.pixels, region)[0])
    assert values[row, column] == pytest.approx(expected, abs=1e-5)


def test_what_is_held_has_a_limit(answerer, shelf):
    from dataclasses import replace

    image = shelf.load("0.png")
    for number in range(IMAGES + 3):
        answerer.rank(replace(image, key=str(number)), [], CAPTIONS)
    assert len(answerer._asked) == len(answerer._plain) == IMAGES
