"""One's own rows: many spellings give one row, and whatever a value may be gives a row or a DataError."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtue_pl.data.formats.own_columns import FIELDS, ROW_COLUMNS
from virtue_pl.data.formats.own_rows import OwnItem, OwnRow, RowOptions, read_row
from virtue_pl.types import DataError

BOX = [10, 8, 20, 20]
FULL: dict[str, Any] = {
    "image": "a.jpg",
    "text": "what is this",
    "instruction": "Look.",
    "boxes": [BOX],
    "box_format": "xywh",
    "units": "pixels",
    "points": [[12, 9], [1, 1]],
    "labels": [1, 0],
    "masks": ["m.png", {"size": [4, 4], "counts": "04L4"}, [1, 2, 3, 4, 5, 6]],
}
READ = OwnItem(
    "Look. what is this",
    ("a.jpg",),
    ((10.0, 8.0, 20.0, 20.0),),
    "xywh",
    "pixels",
    ((12.0, 9.0), (1.0, 1.0)),
    (1, 0),
    tuple(FULL["masks"]),
)

SPELLINGS: dict[str, dict[str, Any]] = {
    "short names": FULL,
    "prefixed": {f"query_{name}": value for name, value in FULL.items()},
    "an object": {"query": FULL},
    "an object and columns": {"query": {"text": FULL["text"]}, **{n: v for n, v in FULL.items() if n != "text"}},
    "one box, images": {**{n: v for n, v in FULL.items() if n != "image"}, "images": ["a.jpg"], "boxes": BOX},
    "the older names": {
        **{n: v for n, v in FULL.items() if n not in ("boxes", "box_format", "text", "image", "masks")},
        **{"query": FULL["text"], "query_image": "a.jpg", "bbox": [float(v) for v in BOX]},
        "segmentation": FULL["masks"],
    },
    "JSON in texts, as in CSV": {**FULL, "boxes": "[[10, 8, 20, 20]]", "points": "[[12,9],[1,1]]", "labels": "[1, 0]"},
    "nulls beside": {**dict.fromkeys(ROW_COLUMNS), **FULL},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_row_has_many_spellings(spelling: str) -> None:
    assert read_row(SPELLINGS[spelling], "train/0").query == READ


def test_targets_negatives_and_candidates_are_spelled_alike() -> None:
    as_columns = {f"target_{name}": value for name, value in FULL.items()}
    row = read_row({"text": "q", **as_columns, "negatives": ["a", FULL, None, ""]}, "train/0")
    assert row.target == READ == read_row({"target": FULL}, "train/0").target
    assert row.negatives == (OwnItem("a"), READ)
    pairs = {"negatives": ["a", ""], "negative_images": ["", "b.jpg"]}
    assert read_row(pairs, "train/0").negatives == (OwnItem("a"), OwnItem(images=("b.jpg",)))
    ranked = read_row({"candidates": [{"image": "b.jpg", "points": [[1, 2]]}, "x"]}, "val/0").candidates
    assert ranked == (OwnItem(images=("b.jpg",), points=((1.0, 2.0),), labels=(1,)), OwnItem("x"))
    assert read_row({"candidates": []}, "val/0").candidates is None


def test_the_file_states_what_a_row_does_not() -> None:
    options = RowOptions("xyxy", "normalised", "Look.", ("id",))
    row = read_row(
        {"id": 3, "image": "a.jpg", "boxes": [[0, 0, 0.5, 0.5]], "target_image": "b.jpg"}, "train/0", options
    )
    assert (row.query.box_format, row.query.units, row.query.text) == ("xyxy", "normalised", "Look.")
    stated = read_row({"image": "a.jpg", "boxes": [BOX], "box_format": "xywh", "units": "pixels"}, "train/0", options)
    assert (stated.query.box_format, stated.query.units) == ("xywh", "pixels")
    target = {"boxes": [BOX], "image": "b.jpg"}
    shared = read_row({"image": "a.jpg", "box_format": "xywh", "units": "pixels", "target": target}, "train/0", options)
    assert shared.target is not None and (shared.target.box_format, shared.target.units) == ("xywh", "pixels")


REFUSED: dict[str, dict[str, Any]] = {
    "unknown column: 'box', did you mean boxes": {"box": BOX},
    "unknown column: 'querry', did you mean query": {"querry": None},
    "unknown column: 'caption'.* in query": {"query": {"caption": "a"}},
    r"text of another type: found 1 \(int\), expected a text": {"text": 1},
    r"query of another type: found \['a'\] \(list\)": {"query": ["a"]},
    r"boxes of another type: found \[\['10', '8', '20', '20'\]\]": {"boxes": [["10", "8", "20", "20"]]},
    "box_format not stated: boxes needs box_format, xyxy or xywh": {"image": "a.jpg", "boxes": [BOX]},
    "box_format unknown: found 'cxcywh'": {"image": "a.jpg", "boxes": [BOX], "box_format": "cxcywh"},
    "units unknown: found 'percent'": {"image": "a.jpg", "points": [[1, 2]], "units": "percent"},
    "bbox of another type: found .*None": {"image": "a.jpg", "bbox": [1, 2, None, 4]},
    "bbox of another type: .* expected four numbers, .left, top, width, height": {"image": "a.jpg", "bbox": []},
    "points of another type: .*True": {"image": "a.jpg", "points": [[True, 2]]},
    "points of another type: .*nan": {"image": "a.jpg", "points": [[math.nan, 2]]},
    "points of another type: .*inf": {"image": "a.jpg", "points": [[math.inf, 2]]},
    "labels do not match: 1 for 2 points": {"image": "a.jpg", "points": [[3, 2], [4, 4]], "labels": [1]},
    "labels of another type: found .*2": {"image": "a.jpg", "points": [[3, 2]], "labels": [2]},
    "labels without points": {"image": "a.jpg", "labels": [1]},
    "region without an image: bbox is given": {"text": "a", "bbox": BOX},
    "given twice: text and query are the same": {"text": "a", "query": "b"},
    "given twice: boxes and bbox are the same": {"image": "a.jpg", "boxes": [BOX], "bbox": BOX},
    "given twice: image and images are the same": {"image": "a.jpg", "images": ["b.jpg"]},
    "given twice: masks and segmentation": {"image": "a.jpg", "masks": ["m"], "segmentation": ["m"]},
    "negatives do not match: 1 texts and 2 images": {"negatives": ["a"], "negative_images": ["b", "c"]},
    r"candidates\[1\] of another type: found 2": {"candidates": ["a", 2]},
    "image is no path": {"image": "a\0.jpg"},
    "text is no Unicode": {"text": "\ud800"},
    "empty mask: segmentation is": {"image": "a.jpg", "segmentation": []},
    "masks is no JSON": {"image": "a.jpg", "masks": "[1, 2"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_value_is_refused_by_column_and_type(message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_row(REFUSED[message], "train/3")
    assert str(caught.value).startswith("train/3: ") and "\n" not in str(caught.value)


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
VALUES = st.recursive(
    st.one_of(NUMBERS, st.binary(max_size=3), st.sampled_from(["xyxy", "xywh", "pixels", "a.jpg", "[1, 2]", "{"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*FIELDS, "bytes", "path", "size", "counts", "odd"]), inner, max_size=4),
    ),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from([*ROW_COLUMNS, "odd"]), VALUES, max_size=6)


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_any_row_is_read_or_refused(row: dict[str, Any]) -> None:
    try:
        found = read_row(row, "train/0")
    except (DataError, ValueError):  # ValueError: an image inside a row, where nothing stores it
        return
    assert isinstance(found, OwnRow)
