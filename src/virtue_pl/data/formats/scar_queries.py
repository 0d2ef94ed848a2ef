"""SCaR's query strings as published, and the rankings of its rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from virtue_pl.data.shards.records import Row
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, VisualPrompt

_IMAGE_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>\s*")


_PUBLISHED_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")


_BOX_STRING = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")


NO_PROMPT = VisualPrompt()
"""Shared by all captions: making one for each of a sample's captions takes longer than decoding its image."""


def published_query(query: str, box: Sequence[float], ranked: bool) -> str:
    """Return the query with its box, xyxy in pixels, as Python prints it.

    An evaluation query (`ranked`) has spaces behind the image token, of which the input formatter adds the first
    (`space_after_image`). Source: tests/golden/parsers.json.
    """
    wording = _PUBLISHED_TOKEN.sub("", _BOX_STRING.sub("", query))
    if ranked:
        wording = f"  {wording}".replace(" \n", "\n")[1:]
    return f"{IMAGE_TOKEN}{wording}\nReferring object bbox: {list(box)}"


def caption(text: str) -> EmbeddingInput:
    """Return a caption as an input without images or prompt."""
    return EmbeddingInput(text, prompt=NO_PROMPT)


def instruction(query: str) -> str:
    """Return the query's text without image token and without the region as text.

    Formatters add both where they need them.
    """
    return _BOX_STRING.sub("", _IMAGE_TOKEN.sub("", query)).strip()


def read_rankings(row: Row, num_candidates: int) -> dict[str, tuple[int, ...]]:
    """Return the row's rankings by name, each a tuple of candidate indices, the right one first.

    Raises DataError for anything else, and for an index that is not below `num_candidates`.
    """
    rankings = row["rankings"]
    if not isinstance(rankings, dict) or not all(map(is_index_list, rankings.values())):
        raise DataError(row.key, f"field 'rankings' is {rankings!r}, expected lists of candidate indices by name")
    checked = {name: tuple(indices) for name, indices in rankings.items()}
    if not all(indices and all(0 <= index < num_candidates for index in indices) for indices in checked.values()):
        raise DataError(
            row.key,
            f"rankings {checked}, expected one index or more, below {num_candidates} (the number of candidates)",
        )
    return checked


def is_index_list(value: Any) -> bool:
    """Return whether a value of JSON is a list of whole numbers."""
    return isinstance(value, list) and all(type(index) is int for index in value)
