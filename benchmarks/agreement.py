"""Agreement of two training implementations: the loss and every gradient of one step, without dropout."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LOSS, GRADIENT = 1e-4, 1e-3
"""Tolerances for float32's sums in another order: of the loss, in nats; of a gradient, relative to its norm."""


def save_gradients(model: nn.Module, file: Path) -> None:
    """Save gradients of the language model's layers and the connector, under names that both sides share."""
    save_file(
        {name.rpartition("language_model.")[2]: p.grad for name, p in model.named_parameters() if p.grad is not None},
        file,
    )


def compare_gradients(losses: tuple[float, float], files: tuple[Path, Path]) -> dict[str, Any]:
    """Return the differences of loss and gradients to the baseline's, and the parameter that differs most.

    losses, files: ours, then the baseline's.
    """
    ours, theirs = (load_file(file) for file in files)
    if ours.keys() != theirs.keys():
        sys.exit(
            f"benchmarks: gradients of {len(ours)} parameters, but the baseline trains {len(theirs)}: they are not one"
            " model"
        )
    worst = max(ours, key=lambda name: relative_difference(ours, theirs, name))
    return {
        "loss": losses[0],
        "loss_difference": abs(losses[0] - losses[1]),
        "gradient_difference": relative_difference(ours, theirs, worst),
        "furthest": worst,
    }


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str) -> float:
    """Return the norm of the difference of a parameter's gradients, relative to the baseline's."""
    return ((ours[name] - theirs[name]).norm() / theirs[name].norm()).item()


def check(agreement: Mapping[str, Any]) -> None:
    """End the benchmark where float32's numbers are not the baseline's."""
    for name, most in (("loss_difference", LOSS), ("gradient_difference", GRADIENT)):
        if not agreement[name] <= most:
            sys.exit(
                f"benchmarks: {name} to the baseline is {agreement[name]:.2g}, expected at most {most}: they do not"
                f" compute the same ({dict(agreement)})"
            )
