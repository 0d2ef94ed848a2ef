"""SCaR's query strings as published, and what a row ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from virtue_pl.data.shards.records import Row
from virtue_pl.types import IMAGE_TOKEN, DataError, EmbeddingInput, VisualPrompt

_IMAGE_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>\s*")


_PUBLISHED_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")


_BOX_STRING = re.compile(r"\s*Referring object (?:bbox|point): [\[(][^\])]*[\])]")


NO_PROMPT = VisualPrompt()
"""One for all: making it anew for each of a sample's captions takes longer than decoding its image."""


def published_query(query: str, box: Sequence[float], ranked: bool) -> str:
    """The query with its box, xyxy in pixels, as Python prints it.

    An evaluation query has spaces behind the image token, of which the input formatter adds the first
    (`space_after_image`).
    Source: tests/golden/parsers.json.
    """
    said = _PUBLISHED_TOKEN.sub("", _BOX_STRING.sub("", query))
    if ranked:
        said = f"  {said}".replace(" \n", "\n")[1:]
    return f"{IMAGE_TOKEN}{said}\nReferring object bbox: {list(box)}"


def caption(text: str) -> EmbeddingInput:
    return EmbeddingInput(text, prompt=NO_PROMPT)


def instruction(query: str) -> str:
    """The query's text without image token and without the region as text; formatters add both as they need them."""
    return _BOX_STRING.sub("", _IMAGE_TOKEN.sub("", query)).strip()


def read_rankings(row: Row, num_candidates: int) -> dict[str, tuple[int, ...]]:
    """The row's rankings, each a tuple of candidate indices, the right one first. Raises DataError for anything
    else.
    """
    rankings = row["rankings"]
    try:
        checked = {name: tuple(int(index) for index in indices) for name, indices in rankings.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            row.key, f"field 'rankings' is {rankings!r}, expected lists of candidate indices by name"
        ) from error
    if not all(
        len(indices) > 1 and all(0 <= index < num_candidates for index in indices) for indices in checked.values()
    ):
        raise DataError(
            row.key,
            f"rankings {checked}, expected two indices or more, below {num_candidates} (the number of candidates)",
        )
    return checked
