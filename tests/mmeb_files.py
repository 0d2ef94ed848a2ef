"""Tiny files in MMEB's layout, as published, for the tests of shards and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scar_files import jpeg

SHOWN = "<|image_1|>\nRepresent the given image."


def vqa_pair(number: int) -> dict[str, Any]:
    """Question `number`, two of an image."""
    return {
        "qry": f"<|image_1|>\nRepresent the given image with the following question: What is {number}?\n",
        "qry_image_path": f"images/shots/s{number // 2}.jpg",
        "pos_text": f"answer {number}\n",
        "pos_image_path": "",
        "neg_text": "",
        "neg_image_path": "",
    }


def t2i_pair(number: int) -> dict[str, Any]:
    return {
        "qry": f"Find me an everyday image that matches the given caption. Caption {number}\n",
        "qry_image_path": "",
        "pos_text": SHOWN,
        "pos_image_path": f"images/shots/s{number}.jpg",
        "neg_text": [SHOWN, SHOWN],
        "neg_image_path": [f"images/shots/s{(number + step) % 8}.jpg" for step in (1, 2)],
    }


def vqa_ranking(number: int) -> dict[str, Any]:
    row = vqa_pair(number)
    answers = [f"answer {number}", "yes", "no"]
    return {
        "qry_text": row["qry"],
        "qry_img_path": f"shots/s{number // 2}.jpg",
        "tgt_text": answers,
        "tgt_img_path": ["", "", ""],
    }


def t2i_ranking(number: int) -> dict[str, Any]:
    paths = [f"shots/s{(number + step) % 4}.jpg" for step in range(4)]
    return {"qry_text": t2i_pair(number)["qry"], "qry_img_path": "", "tgt_text": [SHOWN] * 4, "tgt_img_path": paths}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_mmeb(root: Path, count: int = 8, first: dict[str, Any] | None = None) -> Path:
    """Two datasets in `root`, "OK-VQA" and "MSCOCO_t2i", of `count` rows. `first` spoils the first row of every table
    that has its columns.
    """
    (root / "images/shots").mkdir(parents=True)
    for number in range(8):
        (root / f"images/shots/s{number}.jpg").write_bytes(jpeg(30 * number))
    for dataset, pair, ranking in (("OK-VQA", vqa_pair, vqa_ranking), ("MSCOCO_t2i", t2i_pair, t2i_ranking)):
        for path, rows in (
            (f"MMEB-train/{dataset}/original-00000-of-00001.parquet", [pair(number) for number in range(count)]),
            (f"MMEB-eval/{dataset}/test-00000-of-00001.parquet", [ranking(number) for number in range(count)]),
        ):
            rows[0].update({name: value for name, value in (first or {}).items() if name in rows[0]})
            write_table(root / path, rows)
    return root
