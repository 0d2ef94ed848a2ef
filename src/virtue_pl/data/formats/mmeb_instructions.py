"""MMEB's instruction form to its one-string form: instruction and text are joined to the string that is embedded.

Strings are those of the published evaluation, recorded in tests/golden/parsers.json, white space included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from virtue_pl.data.formats.catalogue import MMEBSet
from virtue_pl.types import DataError

TOKEN = "<|image_1|>"
_TOKEN = re.compile(r"<\|image_(?:\d+|pad)\|>")

QUESTION = ("image_qa", "image_i2i")
"""Wordings whose instruction stands on a line of its own."""

IMAGE_TARGET = ("image_t2i", "image_i2i")
"""Wordings whose candidates are images."""


def to_one_string(row: Mapping[str, Any], dataset: MMEBSet, key: str) -> dict[str, Any]:
    """Return the row in the columns of MMEB's first form.

    Raises DataError where the candidates' texts and images differ in number.
    """
    texts, paths = list(row["tgt_text"] or []), list(row["tgt_img_path"] or [])
    if len(texts) != len(paths):
        raise DataError(key, f"candidates do not match: {len(texts)} texts and {len(paths)} images")
    query = query_string(dataset, row["qry_inst"] or "", row["qry_text"] or "")
    targets = [target_string(dataset, row["tgt_inst"] or "", text or "") for text in texts]
    return {"qry_text": query, "qry_img_path": row["qry_img_path"], "tgt_text": targets, "tgt_img_path": paths}


def query_string(dataset: MMEBSet, instruction: str, text: str) -> str:
    """Return a query's string."""
    if dataset.wording == "image_t2i":
        return f"{instruction} {text}" + "\n" * dataset.query_newlines
    wording = _TOKEN.sub("", instruction)
    return with_image_token(f"\n{wording.strip()}" if dataset.wording in QUESTION else wording, text) + "\n"


def target_string(dataset: MMEBSet, instruction: str, text: str) -> str:
    """Return a candidate's string; a text that is ranked stands as it is, without an instruction."""
    if dataset.wording not in IMAGE_TARGET:
        return text
    alone = dataset.wording == "image_i2i" and not text
    return with_image_token(_TOKEN.sub("", instruction), text) + ("" if alone else "\n")


def with_image_token(instruction: str, text: str) -> str:
    """Return image token, instruction and text, without spaces in front of line breaks."""
    return f"{TOKEN} {instruction}{' ' if text else ''}{text}".replace(" \n", "\n")
