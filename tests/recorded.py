"""What the published implementation computed (golden/README.md), case by case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from virtue_pl.preprocessing.images import decode
from virtue_pl.types import VisualPrompt

GOLDEN = Path(__file__).parent / "golden"
CANVAS = 1024
"""Side of the square, in pixels, on which boxes and points are recorded."""


@dataclass(frozen=True)
class Case:
    """One recorded forward: its inputs, and its outputs by name."""

    texts: tuple[str, ...]
    images: tuple[Tensor | None, ...]
    prompt: VisualPrompt
    outputs: dict[str, Tensor]


@cache
def cases() -> dict[str, Case]:
    tensors = load_file(GOLDEN / "forward.safetensors")
    found = json.loads((GOLDEN / "forward.json").read_text())["cases"]
    return {
        name: Case(tuple(case["texts"]), images(case), prompt(case), outputs(name, tensors))
        for name, case in found.items()
    }


def outputs(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def images(case: dict) -> tuple[Tensor | None, ...]:
    return tuple(None if path is None else decode((GOLDEN / path).read_bytes(), path) for path in case["images"])


def prompt(case: dict) -> VisualPrompt:
    if "bboxes" in case:
        return VisualPrompt(boxes=torch.tensor(case["bboxes"]) / CANVAS)
    if "point" in case:
        return VisualPrompt(points=torch.tensor([case["point"]]) / CANVAS, point_labels=torch.ones(1, dtype=torch.long))
    return VisualPrompt()


def replace_first_image() -> list[str]:
    return [name for name, case in cases().items() if case.images[0] is not None]
