"""Scenes as rows of SCaR's parquet files."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from virtue_pl.data.scenes.captions import PUBLISHED_KINDS
from virtue_pl.data.scenes.compose import Scene, SceneSample
from virtue_pl.preprocessing.segmentations import encode_mask

QUERY = (
    "<|image_1|>\nFind the caption that best describes the segmented object, considering both local details and global"
    " context in the given image."
)

_REGION = [
    ("bbox", pa.list_(pa.float32())),
    ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
    ("category", pa.string()),
    ("image_id", pa.int64()),
]
TRAIN_SCHEMA = pa.schema(
    [
        ("qry", pa.string()),
        ("qry_image_path", pa.string()),
        ("pos_text", pa.string()),
        ("pos_image_path", pa.string()),
        ("neg_text", pa.list_(pa.string())),
        ("neg_image_path", pa.string()),
        *_REGION,
    ]
)
EVAL_SCHEMA = pa.schema(
    [
        ("qry_text", pa.string()),
        ("qry_image_path", pa.string()),
        ("tgt_text", pa.list_(pa.string())),
        *_REGION,
        ("tgt_text_published", pa.list_(pa.string())),
        ("tgt_kinds_published", pa.list_(pa.string())),
        ("background_in_train", pa.bool_()),
    ]
)
"""SCaR's columns; the last three are ours. bbox: x, y, width, height in pixels."""


def schema(split: str) -> pa.Schema:
    """Return the columns of a split."""
    return TRAIN_SCHEMA if split == "train" else EVAL_SCHEMA


def image_path(split: str, index: int) -> str:
    """Return the path of a scene's image, relative to the folder `images`."""
    return f"mini_{split}/{index:08d}.jpg"


def parquet_path(split: str) -> str:
    """Return the path of a split's parquet file, relative to the root."""
    return "SCaR-train/SCAR_mini.parquet" if split == "train" else f"SCaR-eval/SCaR_eval_mini_{split}.parquet"


def rows_of(scene: Scene, split: str, index: int) -> list[dict[str, Any]]:
    """Return the rows of a scene, one for each sample."""
    return [_row(scene, sample, split, index) for sample in scene.samples]


def _row(scene: Scene, sample: SceneSample, split: str, index: int) -> dict[str, Any]:
    shared = {
        "qry_image_path": image_path(split, index),
        "bbox": [float(value) for value in sample.region.box],
        "segmentation": encode_mask(sample.region.mask),
        "category": sample.category,
        "image_id": index,
    }
    if split == "train":
        captions = {
            "pos_text": sample.caption,
            "pos_image_path": "",
            "neg_text": list(sample.negatives),
            "neg_image_path": "",
        }
        return {"qry": QUERY, **shared, **captions}
    return {
        "qry_text": QUERY,
        **shared,
        "tgt_text": list(sample.balanced),
        "tgt_text_published": list(sample.published),
        "tgt_kinds_published": list(PUBLISHED_KINDS),
        "background_in_train": scene.photograph.split == "train",
    }
