"""Rows of MMEB's parquet files to rows of shards, each checked. A DataError's words before ":" are the reason it is
left out for.

Whatever is embedded is stored as [TEXT, NUMBER]: MMEB's own string, and the number of its image in the record, or null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.types import DataError

Item = tuple[str, str]
"""Text and image's path, either of which may be empty."""

PUBLISHED_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")
"""Where a text of MMEB has its image."""


class RowImages:
    """The images of one record, each once, in the order in which rows ask for them."""

    def __init__(self, files: ImageFiles, max_pixels: int) -> None:
        self.files = files
        self.max_pixels = max_pixels
        self.images: list[tuple[bytes, str]] = []
        self.numbers: dict[str, int] = {}

    @property
    def first(self) -> str:
        """The first image's path; "" without any."""
        return next(iter(self.numbers), "")

    def stored(self, items: Sequence[Item], key: str) -> list[list[Any]]:
        """The items as they are stored. Raises DataError, having taken none of their images, where one is missing or
        damaged.
        """
        for text, path in items:
            if not path and PUBLISHED_TOKEN.search(text):
                raise DataError(key, f"image token without an image: {text!r}")
        new = {
            path: self._read(path, key)
            for path in dict.fromkeys(path for _, path in items)
            if path and path not in self.numbers
        }
        for path, image in new.items():
            self.numbers[path] = len(self.images)
            self.images.append(image)
        return [[text, self.numbers[path] if path else None] for text, path in items]

    def _read(self, path: str, key: str) -> tuple[bytes, str]:
        data, header = self.files.read_checked(path, key, self.max_pixels)
        return data, header.extension


def pair_row(row: Mapping[str, Any], key: str, number: int, book: RowImages) -> dict[str, Any]:
    """A training row with its hard negatives, where it has some: one text and path, or lists of them."""
    query, target = (
        item(row["qry"], row["qry_image_path"], "query", key),
        item(row["pos_text"], row["pos_image_path"], "target", key),
    )
    negatives = [
        found for found in items(row.get("neg_text"), row.get("neg_image_path"), "negatives", key) if any(found)
    ]
    if target in negatives:
        raise DataError(key, f"target repeated among negatives: {target!r}")
    stored = book.stored([query, target, *negatives], key)
    return {"row": number, "query": stored[0], "target": stored[1], "negatives": stored[2:]}


def ranking_row(row: Mapping[str, Any], key: str, number: int, book: RowImages) -> dict[str, Any]:
    """An evaluation row: the candidates, each once, the right one first, are ranked as "hit@1"."""
    query, found = (
        item(row["qry_text"], row["qry_img_path"], "query", key),
        items(row["tgt_text"], row["tgt_img_path"], "candidates", key),
    )
    if len(found) < 2 or not all(map(any, found)):
        raise DataError(
            key, f"missing candidate: found {len(found)}, expected two or more, each with a text or an image"
        )
    if found[0] in found[1:]:
        raise DataError(key, f"gold repeated among distractors: {found[0]!r}")
    candidates = list(dict.fromkeys(found))
    stored = book.stored([query, *candidates], key)
    return {
        "row": number,
        "query": stored[0],
        "candidates": stored[1:],
        "rankings": {"hit@1": list(range(len(candidates)))},
    }


def item(text: str | None, path: str | None, what: str, key: str) -> Item:
    if not text and not path:
        raise DataError(key, f"missing {what}: both its text and its image are empty")
    return text or "", path or ""


def items(texts: Any, paths: Any, what: str, key: str) -> list[Item]:
    """Texts and paths side by side, each a list, a single one or none at all."""
    columns = [[found] if isinstance(found, str) else list(found or []) for found in (texts, paths)]
    longest = max(map(len, columns))
    if any(column and len(column) != longest for column in columns):
        raise DataError(key, f"{what} do not match: {len(columns[0])} texts and {len(columns[1])} images")
    filled = [column or [""] * longest for column in columns]
    return [(text or "", path or "") for text, path in zip(*filled, strict=True)]
