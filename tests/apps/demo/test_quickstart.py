"""What the page starts with: captions and regions of the quickstart's rows."""

from __future__ import annotations

import json

import pytest

from virtue_pl.apps.demo.quickstart import captions_of_scenes, read_scenes, request_lines
from virtue_pl.types import VirtueError

ROWS = [
    {"qry_image_path": "t/0.jpg", "tgt_text": ["a cat", "a dog", "a cow", "a pig", "a hen"], "bbox": [1, 2, 3, 4]},
    {"qry_image_path": "t/0.jpg", "tgt_text": ["a kite", "a cat"], "bbox": [5, 6, 7, 8]},
    {"qry_image_path": "t/1.jpg", "tgt_text": ["a tree", "a bush"], "bbox": [0, 0, 9, 9]},
]


def test_each_image_has_the_right_captions_of_all_its_rows():
    found = captions_of_scenes(ROWS)
    assert found == {
        "images/t/0.jpg": ["a cat", "a cow", "a dog", "a kite", "a pig"],
        "images/t/1.jpg": ["a bush", "a tree"],
    }


def test_a_document_is_an_image_with_a_region_of_each_of_its_rows():
    first, second = map(json.loads, request_lines(ROWS))
    assert first["regions"] == [{"box": [1, 2, 4, 6]}, {"box": [5, 6, 12, 14]}]
    assert (second["image"], second["regions_as"]) == ("images/t/1.jpg", "each")


def test_rows_that_are_not_there_are_said(tmp_path):
    with pytest.raises(VirtueError, match="run virtue-pl quickstart"):
        list(read_scenes(tmp_path / "none.parquet", 3))
