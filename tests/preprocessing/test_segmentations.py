"""Masks from files: COCO's run lengths and polygons, checked before they are decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from virtue_pl.preprocessing.segmentations import decode_segmentation
from virtue_pl.types import DataError

SIZE = (24, 32)
SOUND = (np.random.default_rng(0).random(SIZE) > 0.5).astype(np.uint8)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = coco.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_run_lengths_of_both_kinds_are_pycocotools(share: float) -> None:
    mask = (np.random.default_rng(1).random(SIZE) < share).astype(np.uint8)
    runs = np.flatnonzero(np.diff(mask.T.flatten(), prepend=0, append=2)).tolist()
    counts = np.diff([0, *[run for run in runs if run < mask.size], mask.size]).tolist()
    for segmentation in (compressed(mask), {"size": list(SIZE), "counts": counts}, mask.tolist()):
        assert np.array_equal(decode_segmentation(segmentation, "key", SIZE), mask.astype(bool))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_polygons_are_pycocotools() -> None:
    polygons = [[2.0, 3.0, 20.5, 4.0, 12.0, 20.0], [25, 2, 30, 2, 30, 9, 25, 9]]
    expected = coco.decode(coco.merge(coco.frPyObjects(polygons, *SIZE)))
    assert np.array_equal(decode_segmentation(polygons, "key", SIZE), expected.astype(bool))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[]],
        [[3, 4]],
        [[[1, 2], [3, 4], [5, 6]]],
        [{"x": 1, "y": 2}],
        [[1, 2, 3, None, 5, 6]],
        [[1, 2, 3, float("nan"), 5, 6]],
        [[1, 2, 3, float("inf"), 5, 6]],
        [[1, 2, 3, 3e8, 5, 6]],
        {"size": list(SIZE), "counts": [100]},
        {"size": list(SIZE), "counts": []},
        {"size": list(SIZE), "counts": [900, -132]},
        {"size": list(SIZE), "counts": "0~~~~zzz"},
        {"size": [1, 2], "counts": [2]},
        {"counts": [2]},
        "abc",
        7,
    ],
)
def test_what_is_no_mask_is_a_named_fault(segmentation: Any) -> None:
    with pytest.raises(DataError, match="key"):
        decode_segmentation(segmentation, "key", SIZE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(segmentation=JSON | st.fixed_dictionaries({"size": st.just(list(SIZE)), "counts": JSON | st.text(max_size=12)}))
def test_anything_is_a_mask_or_a_named_fault(segmentation: Any) -> None:
    try:
        assert decode_segmentation(segmentation, "key", SIZE).shape == SIZE
    except DataError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(position=st.integers(0, 10**6), value=st.characters(min_codepoint=32, max_codepoint=126))
def test_a_spoiled_string_of_runs_never_shows_memory(position: int, value: str) -> None:
    """What is decoded is the same every time, or a fault."""
    found = compressed(SOUND)
    counts = found["counts"]
    spoiled = {**found, "counts": counts[: position % len(counts)] + value + counts[position % len(counts) + 1 :]}
    try:
        first = decode_segmentation(spoiled, "key", SIZE)
    except DataError:
        return
    assert np.array_equal(first, decode_segmentation(spoiled, "key", SIZE))
