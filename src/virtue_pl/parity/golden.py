"""Recorded cases: a folder with a model, images, and what the model must give.

FOLDER/model                 the release
golden_forward.{json,safetensors}  cases: texts, images, a box of each row or one point for all, on a canvas of 1024
pixels; tensors `<case>/<name>`
golden_grads.{json,safetensors}    a contrastive step with adapters: `adapter_<set>/`, `grad_<set>_rowwise/`,
`reps_<set>_rowwise/`
<family>_<run>.{json,safetensors}  queries and candidates of an evaluation: `<dataset>/qry`, `<dataset>/cand`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virtue_pl.checkpoints.release import inside
from virtue_pl.checkpoints.tensor_files import read_file, read_json
from virtue_pl.preprocessing.images import decode
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

CANVAS = 1024
"""Side of the square, in pixels, on which boxes and points are recorded."""
FORWARD = "golden_forward"


@dataclass(frozen=True)
class Case:
    """One recorded forward: its rows, and its outputs by name."""

    name: str
    items: tuple[EmbeddingInput, ...]
    outputs: Mapping[str, Tensor]
    not_compared: frozenset[str]
    compare: bool


def read_cases(folder: Path) -> list[Case]:
    """The forward cases of a folder, those too that are not to be matched."""
    cases = read_json(folder / f"{FORWARD}.json").get("cases")
    if not isinstance(cases, Mapping):
        raise VirtueError(f"{folder / FORWARD}.json has no cases, expected an object of them")
    tensors = read_file(folder / f"{FORWARD}.safetensors")
    return [read_case(folder, name, case, under(tensors, f"{name}/")) for name, case in cases.items()]


def read_case(folder: Path, name: str, case: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Case:
    images = case.get("images") or [None] * len(case["texts"])
    for row, (image, box) in enumerate(zip(images, case.get("bboxes") or [None] * len(images), strict=True)):
        if box is not None and image is None:
            raise VirtueError(
                f"{folder / FORWARD}.json: {name} points at row {row}, which has no image, expected one in its"
                " `images`, or null in `bboxes`"
            )
    items = tuple(
        item(folder, text, image, prompt(case, row))
        for row, (text, image) in enumerate(zip(case["texts"], images, strict=True))
    )
    return Case(name, items, outputs, frozenset(case.get("compare_not", ())), bool(case.get("compare", True)))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def item(folder: Path, text: str, image: str | None, shown: VisualPrompt) -> EmbeddingInput:
    """A row; one without an image is not pointed at by what is meant for all rows."""
    if image is None:
        return EmbeddingInput(text)
    path = inside(folder, image)
    if not path.is_file():
        raise VirtueError(f"{folder} has no image {image}, expected the one that a case names")
    return EmbeddingInput(text, (decode(path.read_bytes(), image),), shown, (image,))


def prompt(case: Mapping[str, Any], row: int) -> VisualPrompt:
    """What a row of a case is pointed at with: its box, the point of all rows, or a grid of another side than the
    model's.
    """
    boxes = case.get("bboxes")
    if boxes is not None and boxes[row] is not None:
        return box_prompt(boxes[row])
    if case.get("point") is not None:
        return VisualPrompt(
            points=torch.tensor([case["point"]], dtype=torch.float32) / CANVAS,
            point_labels=torch.ones(1, dtype=torch.long),
        )
    return grid_points(case["points_per_side"]) if case.get("points_per_side") else VisualPrompt()


def box_prompt(box: Sequence[float]) -> VisualPrompt:
    return VisualPrompt(boxes=torch.tensor([box], dtype=torch.float32) / CANVAS)
