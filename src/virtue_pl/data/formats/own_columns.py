"""The columns of a row of one's own data, as `own_rows.schema.json` documents them, and what a misspelt one may mean.

Columns of the query have no prefix or "query_", those of the target have "target_". This module imports neither torch
nor pyarrow: a command's help reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

SCHEMA_FILE = "own_rows.schema.json"
FIELDS = (
    *("text", "instruction", "image", "images"),
    *("boxes", "box_format", "units", "points", "labels", "masks", "bbox", "segmentation"),
)
"""Columns that a query, a target, a negative or a candidate may have."""
LISTS = ("negatives", "negative_images", "candidates", "candidate_images")
WHOLE = "item"
"""The field of the columns `query` and `target`: a text, or an object of fields."""
BOX_FORMATS = ("xyxy", "xywh")
UNITS = ("pixels", "normalised")

SYNONYMS = {
    **dict.fromkeys(("caption", "captions", "answer", "label", "positive", "pos", "pos_text", "tgt_text"), "target"),
    **dict.fromkeys(("img", "image_path", "img_path", "path", "file_name", "filename", "image_file"), "image"),
    **dict.fromkeys(("qry_image_path", "qry_img_path"), "query_image"),
    **dict.fromkeys(("pos_image_path", "positive_image"), "target_image"),
    **dict.fromkeys(("qry", "qry_text", "question", "sentence"), "query"),
    **dict.fromkeys(("qry_inst", "prompt"), "instruction"),
    **dict.fromkeys(("box", "boxes_xyxy", "bounding_box", "bounding_boxes", "bboxes", "rect"), "boxes"),
    **dict.fromkeys(("click", "clicks", "point", "keypoints"), "points"),
    **dict.fromkeys(("point_labels", "input_labels", "click_labels"), "labels"),
    **dict.fromkeys(("mask", "rle", "polygon", "polygons"), "masks"),
    **dict.fromkeys(("neg", "neg_text", "hard_negatives", "distractors"), "negatives"),
    **dict.fromkeys(("choices", "options"), "candidates"),
    **dict.fromkeys(("box_type", "bbox_format", "format"), "box_format"),
    **dict.fromkeys(("unit", "normalized", "normalised"), "units"),
}
"""Names that other datasets have, and ours."""


def _columns() -> dict[str, tuple[str, str]]:
    query = {name: ("query", name) for name in FIELDS}
    prefixed = {f"{item}_{name}": (item, name) for item in ("query", "target") for name in FIELDS}
    return {**query, "query": ("query", WHOLE), "target": ("target", WHOLE), **prefixed}


COLUMNS = _columns()
"""For each column of the query and the target, which of the two it is of, and its field."""
ROW_COLUMNS = (*COLUMNS, *LISTS)


def closest_name(name: str, names: Iterable[str] = ROW_COLUMNS) -> str:
    """Return the one of the names that a misspelt one most likely means; "" where none is near.

    Example:
        >>> closest_name("querry_image"), closest_name("caption"), closest_name("zzz")
        ('query_image', 'target', '')
    """
    allowed = list(names)
    lowered = name.strip().lower()
    if SYNONYMS.get(lowered) in allowed:
        return SYNONYMS[lowered]
    return next(iter(get_close_matches(lowered, allowed, 1, cutoff=0.6)), "")


def describe_unknown(name: str, names: Iterable[str] = ROW_COLUMNS) -> str:
    """Return what an error says of a column that there is not."""
    near = closest_name(name, names)
    return f"unknown column: {name!r}{f', did you mean {near}?' if near else ''}"


def schema_text() -> str:
    """Return the JSON Schema of a row, as it is shipped."""
    return (files("virtue_pl.data.formats") / SCHEMA_FILE).read_text(encoding="utf-8")


@cache
def column_descriptions() -> dict[str, str]:
    """Return what the JSON Schema says of each column."""
    properties: dict[str, Any] = json.loads(schema_text())["properties"]
    return {name: about["description"] for name, about in properties.items()}
