"""Recording of a model's own outputs, in the format that parity reads."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.parity.golden import FORWARD, read_case
from virtue_pl.parity.hooks import observe, subsample
from virtue_pl.types import IMAGE_TOKEN, VirtueError

ABOUT = (
    "Outputs of virtue-pl itself, float32; boxes and points on a canvas of 1024 pixels; a name that ends in _sN is"
    " stored with stride N"
)
SIZES = ((96, 128), (170, 120), (60, 230))
"""Height and width of the images, in pixels: wide, tall, and much wider than high."""
STRIDES = {"sam_fpn_last": 4, "mask_embeddings": 4}
RECORDED = (
    "embedding",
    "input_ids",
    "attention_mask",
    "position_ids",
    "model_attention_mask",
    "vision_tokens",
    "sam_sparse",
    "seg_tokens",
    *STRIDES,
)


@dataclass(frozen=True)
class Pointing:
    """Prompt of a recorded case.

    settings: a key of the format and its value; none for no prompt. description: of the region, in the text.

    Example:
        >>> Pointing("image_point", 2, {"point": [614.4, 731.5]}).description
        ''
    """

    name: str
    image: int
    settings: dict[str, Any]
    description: str = ""


POINTINGS = (
    Pointing("image_noprompt", 0, {}),
    Pointing(
        "image_bbox", 1, {"bboxes": [[153.6, 292.5, 921.6, 877.75]]}, "\nReferring object bbox: [18, 49, 108, 146]"
    ),
    Pointing("image_point", 2, {"point": [614.4, 731.5]}, "\nReferring object point: (138, 43)"),
    Pointing("image_grid5", 0, {"points_per_side": 5}),
)


def record(model: EmbeddingModel, folder: Path, seed: int = 0) -> int:
    """Write images and cases into the folder; returns the number of cases.

    Raises VirtueError where the folder holds a recording already.
    """
    if (folder / f"{FORWARD}.json").exists():
        raise VirtueError(
            f"{folder / FORWARD}.json is there, expected a folder without a recording: remove it first, or leave out"
            " `--record`"
        )
    draw_images(folder / "images", seed)
    cases: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, case in case_texts():
        outputs = select_recorded(observe(model, read_case(folder, name, case, {}).items))
        cases[name] = {**case, "compare": True}
        tensors |= {f"{name}/{key}": value for key, value in outputs.items()}
    save_file(
        {name: value.cpu().contiguous().clone() for name, value in tensors.items()}, folder / f"{FORWARD}.safetensors"
    )
    (folder / f"{FORWARD}.json").write_text(
        json.dumps({"about": ABOUT, "cases": cases}, indent=1) + "\n", encoding="utf-8"
    )
    return len(cases)


def case_texts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases: texts alone, each prompt, and rows with and without an image in one batch."""
    sentences = ["A cat sitting on a mat.", "A dog running in the park near the tree.", "golden retriever"]
    yield "text_only_1", {"texts": sentences[:1], "images": [None]}
    yield (
        "text_only_batch3",
        {"texts": sentences, "images": [None] * 3, "compare_not": ["position_ids", "input_ids", "attention_mask"]},
    )
    for pointing in POINTINGS:
        text = f"{IMAGE_TOKEN}\nDescribe what is pointed at in the picture.{pointing.description}"
        yield pointing.name, {"texts": [text], "images": [f"images/img{pointing.image}.png"], **pointing.settings}
    mixed = [
        f"{IMAGE_TOKEN}\nDescribe the picture.",
        sentences[1],
        f"{IMAGE_TOKEN}\nWhat is in the picture, and where does it stand?",
    ]
    images = ["images/img0.png", None, "images/img2.png"]
    yield "mixed_batch3", {"texts": mixed, "images": images, "bboxes": [None, None, [100.0, 100.0, 700.0, 900.0]]}


def select_recorded(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs that are recorded, by their names in the file; of maps every N-th row and column."""
    found = {}
    for name in (name for name in RECORDED if name in outputs):
        stride = STRIDES.get(name)
        found[name if stride is None else f"{name}_s{stride}"] = (
            outputs[name] if stride is None else subsample(outputs[name], stride)
        )
    return found


def draw_images(folder: Path, seed: int) -> None:
    """Write images of discs on a noisy gradient, which depend on the seed alone."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(SIZES):
        slope = np.linspace(0, 160, width)[None, :, None] + generator.integers(0, 60, (height, width, 3))
        image = Image.fromarray(slope.astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(4):
            x, y, size = (int(generator.integers(low, high)) for low, high in ((0, width), (0, height), (12, 40)))
            pen.ellipse(
                (x, y, x + size, y + size // 2), fill=tuple(int(value) for value in generator.integers(0, 256, 3))
            )
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (folder / f"img{number}.png").write_bytes(buffer.getvalue())
