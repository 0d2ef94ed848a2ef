"""Regions of one's own rows at the size of their image: pixels, whichever format, units and kind of mask they have."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from fixtures.own_files import HEIGHT, RUNS, SQUARE, WIDTH
from virtue_pl.data.formats.own_regions import OwnRegion, compressed_counts, decode_runs, read_region
from virtue_pl.data.formats.own_rows import read_row
from virtue_pl.types import DataError

SIZE = (HEIGHT, WIDTH)
INSIDE = np.zeros((3, *SIZE), dtype=np.uint8)
INSIDE[:, 8:28, 10:30] = 255
NOISY = INSIDE.copy()
NOISY[:, 0, 0] = 3
FILES = {"mask.png": INSIDE, "noisy.jpg": NOISY, "small.png": INSIDE[:, 1:], "white.png": INSIDE * 0 + 255}


def region(**columns: Any) -> OwnRegion:
    item = read_row({"image": "a.jpg", **columns}, "train/3").query
    return read_region(item, "train/3", SIZE, FILES.__getitem__)


BITMAP = (INSIDE[0] > 0).astype(int).tolist()
ENCODED = coco.encode(np.asfortranarray(INSIDE[0] > 0).astype(np.uint8))["counts"]
MASKS: dict[str, Any] = {
    "polygon": SQUARE,
    "list of polygons": [SQUARE],
    "polygon in two parts": [[10, 8, 30, 8, 30, 18, 10, 18], [10, 18, 30, 18, 30, 28, 10, 28]],
    "runs": RUNS,
    "compressed": {"size": list(SIZE), "counts": ENCODED.decode()},
    "compressed, as bytes": {"size": list(SIZE), "counts": ENCODED},
    "file": "mask.png",
    "files": ["mask.png"],
    "rows of 0 and 1": BITMAP,
    "JSON": json.dumps([SQUARE]),
    "several kinds": ["mask.png", RUNS, [12, 9, 20, 9, 20, 20]],
}


@pytest.mark.parametrize("column", ["masks", "segmentation"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_is_the_same_square(kind: str, column: str) -> None:
    found = region(**{column: MASKS[kind]})
    assert found.mask == RUNS and found.box == [10, 8, 30, 28] and found.prompt == {}


def test_normalised_is_pixels_and_xyxy_is_xywh() -> None:
    pixels = region(boxes=[[10, 8, 20, 20]], box_format="xywh", points=[[20, 18]], masks=SQUARE)
    scale = [1 / WIDTH, 1 / HEIGHT]
    normalised = region(
        boxes=[[0.2, 0.2, 0.6, 0.7]],
        box_format="xyxy",
        units="normalised",
        points=[[0.4, 0.45]],
        masks=[value * scale[number % 2] for number, value in enumerate(SQUARE)],
    )
    assert np.allclose([*pixels.boxes, *pixels.boxes], [*normalised.boxes, [10, 8, 30, 28]])
    assert np.allclose(pixels.points, normalised.points) and pixels.mask == normalised.mask
    assert pixels.prompt == {"boxes": [[10, 8, 30, 28]], "points": [[20, 18]], "labels": [1]}


def test_several_boxes_mean_one_region() -> None:
    found = region(boxes=[[1, 2, 5, 6], [20, 1, 30, 4]], box_format="xyxy")
    assert found.box == [1, 1, 30, 6] and found.prompt == {"boxes": [[1, 2, 5, 6], [20, 1, 30, 4]]}
    assert region(points=[[1, 2]]).box is None


REFUSED: dict[str, dict[str, Any]] = {
    "units not stated: all coordinates of boxes": {"bbox": [0.2, 0.2, 0.4, 0.5]},
    "units not stated: all coordinates of points": {"points": [[0.5, 0.5]]},
    "units not stated: all coordinates of masks": {"masks": [0, 0, 1, 0, 1, 1]},
    r"units not stated: all coordinates of boxes \(\[0.2": {
        "boxes": [[10, 8, 30, 28], [0.2, 0.2, 0.6, 0.7]],
        "box_format": "xyxy",
    },
    r"units not stated: all coordinates of masks \(\[0.2": {"masks": [SQUARE, [0.2, 0.2, 0.6, 0.2, 0.6, 0.7]]},
    "not normalised: boxes": {"bbox": [10, 8, 20, 20], "units": "normalised"},
    "box outside the image": {"boxes": [10, 8, 90, 20], "box_format": "xyxy"},
    "box without area: .* is it xywh": {"boxes": [30, 8, 20, 20], "box_format": "xyxy"},
    "point outside the image": {"points": [[60, 2]]},
    "no point inside: all 2 labels are 0": {"points": [[6, 2], [7, 2]], "labels": [0, 0]},
    "damaged mask: polygon of 0 values": {"masks": [[]]},
    "damaged mask: polygon of 2 values": {"masks": [[3, 4]]},
    "damaged mask: polygon of 7 values": {"masks": [[1, 2, 3, 4, 5, 6, 7]]},
    "damaged mask: polygon .*None": {"masks": [[1, 2, 3, None, 5, 6]]},
    "damaged mask: polygon .*'8'": {"masks": [["10", "8", "30", "8", "30", "28"]]},
    "damaged mask: .*'x'.* expected run lengths": {"masks": [{"x": 10, "y": 8}]},
    "mask outside the image": {"masks": [[1, 2, 3e8, 4, 5, 6]]},
    "damaged mask: its run lengths add up to 150": {"masks": {"size": list(SIZE), "counts": [100, 50]}},
    "damaged mask: its run lengths add up to 0": {"masks": {"size": list(SIZE), "counts": []}},
    "damaged mask: counts .* 0 or more": {"masks": {"size": list(SIZE), "counts": [410, -20, 1610]}},
    "damaged mask: counts 'no runs": {"masks": {"size": list(SIZE), "counts": "no runs \x7f"}},
    "mask of another size: .*20, 20": {"masks": {"size": [20, 20], "counts": [400]}},
    "empty mask": {"masks": {"size": list(SIZE), "counts": [2000]}},
    "mask of several levels: noisy.jpg has 3": {"masks": "noisy.jpg"},
    "mask of another size: .*39, 50": {"masks": ["small.png"]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_impossible_region_is_refused(message: str) -> None:
    with pytest.raises(DataError, match=message):
        region(**REFUSED[message])


def test_one_of_several_clicks_may_be_in_the_first_pixel() -> None:
    assert region(points=[[1, 1], [20, 18]]).points == ([1, 1], [20, 18])


def test_a_mask_without_outside_is_the_whole_image() -> None:
    assert region(masks="white.png").box == [0, 0, WIDTH, HEIGHT]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**81 - 1))
def test_compressed_runs_are_those_of_coco(height: int, width: int, bits: int) -> None:
    inside = np.array([bits >> number & 1 for number in range(height * width)], dtype=np.uint8).reshape(height, width)
    counts = compressed_counts(coco.encode(np.asfortranarray(inside))["counts"].decode())
    assert counts is not None and (decode_runs({"size": [height, width], "counts": counts}) == inside).all()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_any_text_as_runs_is_a_mask_or_refused(counts: str) -> None:
    try:
        found = region(masks={"size": list(SIZE), "counts": counts})
    except DataError:
        return
    assert found.mask is not None
