"""Rows of MMEB's parquet files to rows of shards, each checked.

A DataError's words before ":" are the reason for which a row is left out. Inputs are stored as [TEXT, NUMBER]: MMEB's
own string, and the number of its image in the record, or null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from virtue_pl.data.formats.candidates import check_candidates, drop_gold_repeats
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.types import DataError

Item = tuple[str, str]
"""A text and an image's path, either of which may be empty."""

PUBLISHED_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")
"""Where a text of MMEB has its image."""


class RowImages:
    """The images of one record, each once, in the order in which rows need them.

    Example:
        >>> from pathlib import Path
        >>> row_images = RowImages(ImageFiles((Path("images"),)), max_pixels=10_000)
        >>> row_images.store([("a cat", "")], key="MMEB_mini/0"), row_images.first
        ([['a cat', None]], '')
    """

    def __init__(self, files: ImageFiles, max_pixels: int) -> None:
        self.files = files
        self.max_pixels = max_pixels
        self.images: list[tuple[bytes, str]] = []
        self.numbers: dict[str, int] = {}

    @property
    def first(self) -> str:
        """Return the first image's path; "" without images."""
        return next(iter(self.numbers), "")

    def store(self, items: Sequence[Item], key: str) -> list[list[Any]]:
        """Return the items as [TEXT, NUMBER], and add their images to the record.

        Raises DataError, and adds none of their images, where one is missing or damaged.
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


def pair_row(row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
    """Return a training row with its hard negatives, where it has some: one text and path, or lists of them."""
    query, target = (
        read_item(row["qry"], row["qry_image_path"], "query", key),
        read_item(row["pos_text"], row["pos_image_path"], "target", key),
    )
    negatives = [
        found for found in read_items(row.get("neg_text"), row.get("neg_image_path"), "negatives", key) if any(found)
    ]
    if target in negatives:
        raise DataError(key, f"target repeated among negatives: {target!r}")
    stored = row_images.store([query, target, *negatives], key)
    return {"row": number, "query": stored[0], "target": stored[1], "negatives": stored[2:]}


def ranking_row(row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
    """Return an evaluation row: the candidates as they are, the right one first, are ranked as "hit@1".

    A candidate with the text and the image of the right one is not ranked.
    """
    query = read_item(row["qry_text"], row["qry_img_path"], "query", key)
    found = read_items(row["tgt_text"], row["tgt_img_path"], "candidates", key)
    check_candidates(found, key)
    stored_query, *candidates = row_images.store([query, *found], key)
    contents = [(text, None if image is None else row_images.images[image][0]) for text, image in candidates]
    ranking = list(drop_gold_repeats(contents, range(len(contents))))
    return {"row": number, "query": stored_query, "candidates": candidates, "rankings": {"hit@1": ranking}}


def read_item(text: str | None, path: str | None, what: str, key: str) -> Item:
    """Return a text and a path, with "" for None. Raises DataError, which names `what`, where both are empty."""
    if not text and not path:
        raise DataError(key, f"missing {what}: both its text and its image are empty")
    return text or "", path or ""


def read_items(texts: Any, paths: Any, what: str, key: str) -> list[Item]:
    """Return texts and paths side by side, each given as a list, a single one or None.

    Raises DataError for lists of unequal length.
    """
    columns = [[found] if isinstance(found, str) else list(found or []) for found in (texts, paths)]
    longest = max(map(len, columns))
    if any(column and len(column) != longest for column in columns):
        raise DataError(key, f"{what} do not match: {len(columns[0])} texts and {len(columns[1])} images")
    filled = [column or [""] * longest for column in columns]
    return [(text or "", path or "") for text, path in zip(*filled, strict=True)]
