"""The columns of one's own rows: the schema that is shipped names them all, and misspelt ones find their name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fixtures.pages import ROOT
from virtue_pl.data.formats.own_columns import (
    FIELDS,
    LISTS,
    ROW_COLUMNS,
    SYNONYMS,
    closest_name,
    column_descriptions,
    schema_text,
)


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(item) for item in value.values()))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


def test_the_schema_has_the_columns_that_are_read() -> None:
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == set(ROW_COLUMNS) and schema["additionalProperties"] is False
    assert set(schema["$defs"]["item"]["anyOf"][1]["properties"]) == set(FIELDS)
    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert all(len(text) > 10 for text in column_descriptions().values())


def test_the_page_on_data_names_every_column() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [name for name in ("query", "target", *FIELDS, *LISTS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("box", "boxes"),
        ("Boxes", "boxes"),
        ("caption", "target"),
        ("querry", "query"),
        ("segmentaton", "segmentation"),
        ("point", "points"),
        ("mask", "masks"),
        ("qry_image_path", "query_image"),
        ("negativ_images", "negative_images"),
        ("zzz", ""),
    ],
)
def test_a_misspelt_column_finds_its_name(typed: str, meant: str) -> None:
    assert closest_name(typed) == meant


def test_every_synonym_means_a_column_and_is_none() -> None:
    assert set(SYNONYMS.values()) <= set(ROW_COLUMNS) and not set(SYNONYMS) & set(ROW_COLUMNS)


@pytest.mark.parametrize("name", ROW_COLUMNS)
def test_a_letter_left_out_is_found_again(name: str) -> None:
    """Of `text` or `units` too: the closest name is one that differs by a letter or two."""
    found = closest_name(name[:-2] + name[-1])
    assert found == name or len(set(found) ^ set(name)) <= 3
