"""The figure of README: its scenes are sound, and equal rankings give equal files."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fixtures.pages import ROOT


@pytest.fixture(scope="module")
def figure() -> dict[str, Any]:
    """The names of docs/figure.py."""
    return runpy.run_path(str(ROOT / "docs" / "figure.py"))


def test_boxes_lie_in_their_photograph_and_have_a_caption_each(figure: dict[str, Any]) -> None:
    for scene in figure["SCENES"].values():
        height, width, channels = figure["photograph"](scene).shape
        assert channels == 3 and len(scene.right) == len(scene.boxes)
        assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in scene.boxes)
        assert len(set(scene.captions)) == len(scene.captions) == len(scene.right) + len(scene.wrong)


def test_the_text_says_which_caption_is_first_and_which_is_right(figure: dict[str, Any]) -> None:
    scores = np.array([[0.1, 0.4, 0.2, 0.3, 0.0], [0.1, 0.5, 0.2, 0.3, 0.0]])
    lines = figure["as_text"]("astronaut", figure["SCENES"]["astronaut"], scores).splitlines()
    assert lines[2] == "    0.40  a space shuttle" and lines[8] == "  * 0.50  a space shuttle"


def test_equal_rankings_give_equal_files_of_1600_pixels(figure: dict[str, Any], tmp_path: Path) -> None:
    scene = figure["SCENES"]["coffee"]
    scores = np.linspace(-0.1, 0.5, 10).reshape(2, 5)
    for name in ("first.png", "second.png"):
        figure["draw"](scene, scores, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert Image.open(tmp_path / "first.png").width == 1600
