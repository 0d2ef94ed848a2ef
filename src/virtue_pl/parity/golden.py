"""Recorded cases: a folder with a model, images, and the outputs that the model must reproduce.

FOLDER/model                       the model
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

from virtue_pl.checkpoints.release import path_inside
from virtue_pl.checkpoints.tensor_files import read_file, read_json
from virtue_pl.preprocessing.images import MAX_PIXELS, decode
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

CANVAS = 1024
"""Height and width, in pixels, of the square on which boxes and points are recorded."""
FORWARD = "golden_forward"


@dataclass(frozen=True)
class Case:
    """One recorded forward pass: its rows, and its outputs by name.

    not_compared: names of outputs that are left out. compare: False for a case that is not to be reproduced.

    Example:
        >>> outputs = {"embedding": torch.ones(1, 4)}
        >>> case = Case("text_only", (EmbeddingInput("a cat"),), outputs, not_compared=frozenset(), compare=True)
    """

    name: str
    items: tuple[EmbeddingInput, ...]
    outputs: Mapping[str, Tensor]
    not_compared: frozenset[str]
    compare: bool


def read_cases(folder: Path, max_pixels: int = MAX_PIXELS) -> list[Case]:
    """Return the forward cases of a folder, also those that are not to be reproduced.

    Raises DataError for an image of more than `max_pixels`.
    """
    cases = read_json(folder / f"{FORWARD}.json").get("cases")
    if not isinstance(cases, Mapping):
        raise VirtueError(f"{folder / FORWARD}.json has no cases, expected an object of them")
    tensors = read_file(folder / f"{FORWARD}.safetensors")
    return [
        read_case(folder, name, case, select_prefix(tensors, f"{name}/"), max_pixels) for name, case in cases.items()
    ]


def read_case(
    folder: Path, name: str, case: Mapping[str, Any], outputs: Mapping[str, Tensor], max_pixels: int = MAX_PIXELS
) -> Case:
    """Return one case of the recording's JSON. Raises VirtueError for a box on a row without an image."""
    images = case.get("images") or [None] * len(case["texts"])
    for row, (image, box) in enumerate(zip(images, case.get("bboxes") or [None] * len(images), strict=True)):
        if box is not None and image is None:
            raise VirtueError(
                f"{folder / FORWARD}.json: {name} points at row {row}, which has no image, expected one in its"
                " `images`, or null in `bboxes`"
            )
    items = tuple(
        item(folder, text, image, prompt_of_row(case, row), max_pixels)
        for row, (text, image) in enumerate(zip(case["texts"], images, strict=True))
    )
    return Case(name, items, outputs, frozenset(case.get("compare_not", ())), bool(case.get("compare", True)))


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins with the prefix, by the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def item(
    folder: Path, text: str, image: str | None, prompt: VisualPrompt, max_pixels: int = MAX_PIXELS
) -> EmbeddingInput:
    """Return a row; one without an image has no prompt, though the case has one for all rows."""
    if image is None:
        return EmbeddingInput(text)
    path = path_inside(folder, image)
    if not path.is_file():
        raise VirtueError(f"{folder} has no image {image}, expected the one that a case names")
    return EmbeddingInput(text, (decode(path.read_bytes(), image, max_pixels),), prompt, (image,))


def prompt_of_row(case: Mapping[str, Any], row: int) -> VisualPrompt:
    """Return the prompt of a case's row: its box, the point of all rows, or a grid of other size than the model's."""
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
    """Return a box (x0, y0, x1, y1), in pixels of the canvas, as a prompt."""
    return VisualPrompt(boxes=torch.tensor([box], dtype=torch.float32) / CANVAS)
