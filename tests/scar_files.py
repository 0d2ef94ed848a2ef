"""Tiny files in SCaR's layout, for the tests of shards and streams."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 12, 16
QUERY = "<|image_1|>\nFind the caption.\nReferring object bbox: [1, 2, 5, 7]"


def jpeg(number: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    """A one-coloured image; `number`, which is its comment too, makes its bytes its own."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, 90)).save(
        buffer, "JPEG", quality=95, comment=str(number), **options
    )
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A small file that claims any size."""
    parts = b""
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ):
        parts += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + parts


def rle(box: list[int]) -> dict[str, Any]:
    """The mask of a box (x, y, width, height), as compressed RLE."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 1
    encoded = coco.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def runs(box: list[int]) -> dict[str, Any]:
    """The same mask as plain run lengths, down the columns."""
    x, y, width, height = box
    below = HEIGHT - height
    counts = [x * HEIGHT + y, *([height, below] * width)]
    return {"size": [HEIGHT, WIDTH], "counts": [*counts[:-1], HEIGHT * WIDTH - sum(counts[:-1])]}


def pair(image: int, region: int) -> dict[str, Any]:
    box = [1 + region, 2, 4, 5]
    return {
        "qry": QUERY,
        "qry_image_path": f"mini_train/{image:04d}.jpg",
        "pos_text": f"caption {image} {region}",
        "pos_image_path": "",
        "neg_text": [f"wrong {number} of {image} {region}" for number in range(4)],
        "neg_image_path": "",
        "bbox": [float(value) for value in box],
        "segmentation": rle(box),
        "category": "thing",
        "image_id": image,
    }


def ranking(image: int, region: int) -> dict[str, Any]:
    row = pair(image, region)
    gold = row["pos_text"]
    shared = {name: row[name] for name in ("bbox", "segmentation", "category", "image_id")}
    return {
        "qry_text": QUERY,
        "qry_image_path": f"mini_val/{image:04d}.jpg",
        "tgt_text": [gold, "both", *(f"balanced {number}" for number in range(8))],
        **shared,
        "tgt_text_published": [gold, "both", *(f"published {number}" for number in range(8))],
        "tgt_kinds_published": ["gold", *(["object"] * 3 + ["relation"] * 3 + ["scene"] * 3)],
    }


def write_scar(
    root: Path,
    train: list[int] = [2, 1, 3],  # noqa: B006
    val: list[int] = [1, 2],  # noqa: B006
    edit: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None] = lambda pairs, rankings: None,
) -> Path:
    """SCaR-mini in `root`: `train` and `val` say how many regions each image has. `edit` spoils the rows before they
    are written.
    """
    pairs = [pair(image, region) for image, regions in enumerate(train) for region in range(regions)]
    rankings = [ranking(image, region) for image, regions in enumerate(val) for region in range(regions)]
    for split, images in (("train", train), ("val", val)):
        folder = root / "images" / f"mini_{split}"
        folder.mkdir(parents=True)
        for image in range(len(images)):
            (folder / f"{image:04d}.jpg").write_bytes(jpeg(image))
    edit(pairs, rankings)
    for path, rows in (("SCaR-train/SCAR_mini.parquet", pairs), ("SCaR-eval/SCaR_eval_mini_val.parquet", rankings)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), root / path)
    return root
