"""Small copies of the official folders of MMEB and SCaR: every dataset, a few rows each, in the published names,
columns and strings.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmeb_files import write_table
from scar_files import HEIGHT, WIDTH, jpeg, rle, runs
from virtue_pl.data.formats.catalogue import MMEBSet, SCaRSet, mmeb_sets, scar_sets

ROWS = 4
TOKEN = "<|image_1|>"
INSTRUCTION = (
    "Find the caption that best describes the segmented object, considering both local details and global context in"
    " the given image."
)

MMEB = tuple(dataset for dataset in mmeb_sets().values() if dataset.distribution)
TRAINED = tuple(dataset for dataset in MMEB if dataset.train_folder)
SCAR = tuple(scar_sets().values())


def number_of(dataset: MMEBSet | SCaRSet) -> int:
    """A number of its own for every dataset, so that no two share an image's bytes."""
    return [known.task for known in (*MMEB, *SCAR)].index(dataset.task)


def write_official_mmeb(root: Path, datasets: Iterable[MMEBSet] = MMEB) -> Path:
    """MMEB-train (every second dataset's images still zipped), MMEB-eval and MMEB_Test_Instruct in `root`."""
    for dataset in datasets:
        number = number_of(dataset)
        if dataset.train_folder:
            folder = root / "MMEB-train"
            for split, style in (("original", "Say"), ("diverse_instruction", "Tell")):
                rows = [mmeb_pair(dataset, row, style) for row in range(ROWS)]
                write_table(folder / dataset.train_folder / f"{split}-00000-of-00001.parquet", rows)
            images = {
                f"{dataset.train_folder}/Train/{name}.jpg": jpeg(1000 * number + place)
                for place, name in enumerate(names())
            }
            write_images(folder, dataset.train_folder, images, zipped=number % 2 == 1)
        evaluated = {
            f"{dataset.eval_folder}/{name}.jpg": jpeg(1000 * number + 500 + place) for place, name in enumerate(names())
        }
        write_images(root / "MMEB-eval", dataset.eval_folder, evaluated, zipped=False)
        apart = [instruction_ranking(dataset, row) for row in range(ROWS)]
        write_table(root / "MMEB_Test_Instruct" / dataset.eval_folder / "test-00000-of-00001.parquet", apart)
        write_table(
            root / "MMEB-eval" / dataset.eval_folder / "test-00000-of-00001.parquet",
            [joined(dataset, row) for row in apart],
        )
    return root


def names() -> list[str]:
    return [f"{role}{number}" for role in ("query", "target") for number in range(ROWS)]


def write_images(folder: Path, name: str, images: dict[str, bytes], zipped: bool) -> None:
    if zipped:
        (folder / "images_zip").mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "images_zip" / f"{name}.zip", "w") as archive:
            for path, data in images.items():
                archive.writestr(f"images/{path}", data)
                archive.writestr(f"__MACOSX/images/{path}", b"\0\5\x16\7")
        return
    for path, data in images.items():
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes(data)


def mmeb_pair(dataset: MMEBSet, row: int, style: str) -> dict[str, Any]:
    folder = f"images/{dataset.train_folder}/Train"
    asks_with_text, shows_target = dataset.wording == "image_t2i", dataset.wording in ("image_t2i", "image_i2i")
    return {
        "qry": f"{style} {row}\n" if asks_with_text else f"{TOKEN}\n{style} what {dataset.task} shows: {row}\n",
        "qry_image_path": "" if asks_with_text else f"{folder}/query{row}.jpg",
        "pos_text": f"{TOKEN}\nRepresent the given image.\n" if shows_target else f"answer {row}\n",
        "pos_image_path": f"{folder}/target{row}.jpg" if shows_target else "",
        "neg_text": "",
        "neg_image_path": "",
    }


def instruction_ranking(dataset: MMEBSet, row: int) -> dict[str, Any]:
    asks_with_text, shows_target = dataset.wording == "image_t2i", dataset.wording in ("image_t2i", "image_i2i")
    order = [(row + step) % ROWS for step in range(ROWS)]
    return {
        "qry_inst": "Find an image of:" if asks_with_text else f"{TOKEN} Represent the given image of {dataset.task}",
        "qry_text": f"thing {row}" if dataset.wording != "image_cls" else "",
        "qry_img_path": "" if asks_with_text else f"{dataset.eval_folder}/query{row}.jpg",
        "tgt_inst": f"{TOKEN} Represent the given image." if shows_target else "",
        "tgt_text": ["" if shows_target else f"answer {place}" for place in order],
        "tgt_img_path": [f"{dataset.eval_folder}/target{place}.jpg" if shows_target else "" for place in order],
    }


def joined(dataset: MMEBSet, row: dict[str, Any]) -> dict[str, Any]:
    """The same row as one string each, written out by hand for each wording."""
    said, text = row["qry_inst"].replace(f"{TOKEN} ", ""), row["qry_text"]
    query = {
        "image_cls": f"{TOKEN}  {said}\n",
        "image_i2t": f"{TOKEN}  {said} {text}\n",
        "image_qa": f"{TOKEN}\n{said} {text}\n",
        "image_i2i": f"{TOKEN}\n{said} {text}\n",
        "image_t2i": f"{said} {text}\n" + ("\n" if dataset.task == "VisDial" else ""),
    }[dataset.wording]
    shown = {"image_t2i": f"{TOKEN}  Represent the given image.\n", "image_i2i": f"{TOKEN}  Represent the given image."}
    targets = [shown.get(dataset.wording, answer) for answer in row["tgt_text"]]
    return {
        "qry_text": query,
        "qry_img_path": row["qry_img_path"],
        "tgt_text": targets,
        "tgt_img_path": row["tgt_img_path"],
    }


def segmentation(kind: int, box: list[int]) -> Any:
    """The mask of a box in each of the ways that datasets write it."""
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    drawn = [
        [int(x <= column < x + width and y <= row < y + height) for column in range(WIDTH)] for row in range(HEIGHT)
    ]
    return (rle(box), [[float(value) for value in polygon]], runs(box), json.dumps([polygon]), drawn)[kind]


def write_official_scar(root: Path, datasets: Iterable[SCaRSet] = SCAR) -> Path:
    """SCaR-train and SCaR-eval in `root`; each dataset writes its masks in another way."""
    for dataset in datasets:
        number = number_of(dataset)
        for image_folder, offset in ((dataset.train_images, 0), (dataset.eval_images, 500)):
            images = {f"{image_folder}/{row}.jpg": jpeg(1000 * number + offset + row) for row in range(ROWS)}
            write_images(root, image_folder, images, zipped=False)
        boxes = [[1 + row, 2, 5, 4 + row] for row in range(ROWS)]
        common = [
            {"bbox": box, "segmentation": segmentation(number % 5, box), "category": "thing", "image_id": row}
            for row, box in enumerate(boxes)
        ]
        pairs = [
            {
                "qry": f"{TOKEN}\n{INSTRUCTION}",
                "qry_image_path": f"{dataset.train_images}/{row}.jpg",
                "pos_text": f"caption {row}",
            }
            for row in range(ROWS)
        ]
        write_table(
            root / "SCaR-train" / f"{dataset.train_file}.parquet",
            [
                {
                    **pair,
                    "pos_image_path": "",
                    "neg_text": [f"wrong {n}" for n in range(9)],
                    "neg_image_path": "",
                    **rest,
                }
                for pair, rest in zip(pairs, common, strict=True)
            ],
        )
        rankings = [
            {
                "qry_text": f"{TOKEN}\n{INSTRUCTION}",
                "qry_image_path": f"{dataset.eval_images}/{row}.jpg",
                "bbox": boxes[row],
            }
            | {"tgt_text": [f"caption {row}", *(f"wrong {n}" for n in range(9))]}
            for row in range(ROWS)
        ]
        write_table(root / "SCaR-eval" / f"{dataset.eval_file}.parquet", rankings)
    return root
