"""Questions as rows of MMEB's parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from virtue_pl.data.scenes.mmeb.rows import Answer, Question

NUM_NEGATIVES = 4
"""Wrong candidates that a training row has as hard negatives."""

TRAIN_SCHEMA = pa.schema(
    [
        ("qry", pa.string()),
        ("qry_image_path", pa.string()),
        ("pos_text", pa.string()),
        ("pos_image_path", pa.string()),
        ("neg_text", pa.list_(pa.string())),
        ("neg_image_path", pa.list_(pa.string())),
    ]
)
"""MMEB-train's columns; the published negatives are one text and one path, ours are lists of them."""
TEST_SCHEMA = pa.schema(
    [
        ("qry_text", pa.string()),
        ("qry_img_path", pa.string()),
        ("tgt_text", pa.list_(pa.string())),
        ("tgt_img_path", pa.list_(pa.string())),
    ]
)
"""MMEB-eval's columns; the right candidate comes first."""


def schema(split: str) -> pa.Schema:
    """Return the columns of a split."""
    return TRAIN_SCHEMA if split == "train" else TEST_SCHEMA


def folder(task: str, split: str) -> str:
    """Return the folder of a task's images, relative to the folder `images`."""
    return f"{task}/{split.capitalize()}"


def parquet_path(task: str, split: str) -> str:
    """Return the path of a task's parquet file, relative to the root, as the published files are named."""
    return (
        f"MMEB-train/{task}/original-00000-of-00001.parquet"
        if split == "train"
        else f"MMEB-eval/{task}/test-00000-of-00001.parquet"
    )


def row(question: Question, paths: Mapping[str, str], split: str) -> dict[str, Any]:
    """Return a question as a row.

    `paths` are those of the images by name, relative to the folder `images`. As published, those of training begin with
    "images/".
    """
    begin = "images/" if split == "train" else ""

    def path(name: str) -> str:
        return begin + paths[name] if name else ""

    right, *wrong = question.answers
    if split == "train":
        negatives: list[Answer] = wrong[:NUM_NEGATIVES]
        return {
            "qry": question.text,
            "qry_image_path": path(question.image),
            "pos_text": right.text,
            "pos_image_path": path(right.image),
            "neg_text": [answer.text for answer in negatives],
            "neg_image_path": [path(answer.image) for answer in negatives],
        }
    return {
        "qry_text": question.text,
        "qry_img_path": path(question.image),
        "tgt_text": [answer.text for answer in question.answers],
        "tgt_img_path": [path(answer.image) for answer in question.answers],
    }
