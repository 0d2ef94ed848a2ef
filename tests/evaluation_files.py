"""Small evaluation sets in the official layouts, with images that a random model tells apart."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmeb_files import write_table

TOKEN = "<|image_1|>"
SCAR_QUERY = f"{TOKEN}\nFind the caption that best describes the segmented object."
WORDS = ("fox", "boat", "tower", "kettle", "garden", "lamp", "river", "crane", "sheep", "wall", "book", "kite")
Edit = Callable[[list[dict[str, Any]]], None]


def untouched(rows: list[dict[str, Any]]) -> None:
    """Nothing is spoiled."""


def make_image(number: int, size: tuple[int, int] = (96, 72)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).save(content, "PNG")
    return content.getvalue()


def write_scar_set(
    root: Path,
    name: str = "ADE20K",
    rows: int = 4,
    regions: int = 2,
    candidates: int = 5,
    edit: Edit = untouched,
    first: int = 0,
) -> Path:
    """ROOT/data/SCaR_eval_NAME.parquet: `regions` rows an image; captions are shared between rows. first: number of the
    first image.
    """
    table = []
    for row in range(rows):
        shown = f"set/{first + row // regions}.png"
        (root / "images" / shown).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / shown).write_bytes(make_image(first + row // regions))
        captions = [
            f"a {WORDS[(row + step) % 12]} beside the {WORDS[(row + 5 * step) % 12]}" for step in range(candidates)
        ]
        box = [4.5 + 9 * (row % regions), 6.25, 30.1, 41.0]
        table.append({"qry_text": SCAR_QUERY, "qry_image_path": shown, "tgt_text": captions, "bbox": box})
    edit(table)
    write_table(root / "data" / f"SCaR_eval_{name}.parquet", table)
    return root


def write_mmeb_sets(root: Path, rows: int = 4, edit: Edit = untouched) -> Path:
    """ROOT/instruct/ and ROOT/v1/ of OK-VQA, MSCOCO_t2i and RefCOCO-Matching, which share images."""
    for number in range(6):
        (root / "images/shots").mkdir(parents=True, exist_ok=True)
        (root / f"images/shots/{number}.png").write_bytes(make_image(50 + number, (64 + 32 * (number % 2), 64)))
    for name, apart, joined in (
        ("OK-VQA", *vqa(rows)),
        ("MSCOCO_t2i", *t2i(rows)),
        ("RefCOCO-Matching", *matching(rows)),
    ):
        edit(apart)
        write_table(root / "instruct" / name / "test-00000-of-00001.parquet", apart)
        write_table(root / "v1" / name / "test-00000-of-00001.parquet", joined)
    return root


def vqa(rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    paths = [f"shots/{row % 6}.png" for row in range(rows)]
    answers = [[WORDS[(row + 2 * step) % 12] for step in range(4)] for row in range(rows)]
    said = "Represent the given image with the following question:"
    apart = [
        {
            "qry_inst": f"{TOKEN} {said}",
            "qry_text": f"what is {row}?",
            "qry_img_path": paths[row],
            "tgt_inst": "",
            **texts(answers[row]),
        }
        for row in range(rows)
    ]
    joined = [
        {"qry_text": f"{TOKEN}\n{said} what is {row}?\n", "qry_img_path": paths[row], **texts(answers[row])}
        for row in range(rows)
    ]
    return apart, joined


def t2i(rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shown = [[f"shots/{(row + step) % 6}.png" for step in range(4)] for row in range(rows)]
    said, target = "Find me an everyday image that matches the given caption.", "Represent the given image."
    apart = [
        {
            "qry_inst": said,
            "qry_text": f"A {WORDS[row]}.",
            "qry_img_path": "",
            "tgt_inst": f"{TOKEN} {target}",
            "tgt_text": [""] * 4,
            "tgt_img_path": shown[row],
        }
        for row in range(rows)
    ]
    joined = [
        {
            "qry_text": f"{said} A {WORDS[row]}.\n",
            "qry_img_path": "",
            "tgt_text": [f"{TOKEN}  {target}\n"] * 4,
            "tgt_img_path": shown[row],
        }
        for row in range(rows)
    ]
    return apart, joined


def matching(rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One image stands twice in a list, with another caption."""
    shown = [[f"shots/{(row + step // 2) % 6}.png" for step in range(4)] for row in range(rows)]
    captions = [[f'"a {WORDS[(row + 3 * step) % 12]}"' for step in range(4)] for row in range(rows)]
    said, target = (
        "Select the portion of the image that follows the language expressions.",
        "Represent the given cropped image with the caption:",
    )
    apart = [
        {
            "qry_inst": f"{TOKEN} {said}",
            "qry_text": f'"the {WORDS[row]}"',
            "qry_img_path": shown[row][0],
            "tgt_inst": f"{TOKEN} {target}",
            "tgt_text": captions[row],
            "tgt_img_path": shown[row],
        }
        for row in range(rows)
    ]
    joined = [
        {
            "qry_text": f'{TOKEN}\n{said} "the {WORDS[row]}"\n',
            "qry_img_path": shown[row][0],
            "tgt_text": [f"{TOKEN}  {target} {caption}\n" for caption in captions[row]],
            "tgt_img_path": shown[row],
        }
        for row in range(rows)
    ]
    return apart, joined


def texts(answers: Sequence[str]) -> dict[str, Any]:
    return {"tgt_text": list(answers), "tgt_img_path": [""] * len(answers)}


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())
