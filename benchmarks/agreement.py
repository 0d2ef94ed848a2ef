"""Whether two ways to train compute the same: the loss and every gradient of one step without dropout, whose draws are
never alike.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LOSS, GRADIENT = 1e-4, 1e-3
"""What float32's sums in another order may differ by: of the loss, in nats; of the gradient of a parameter, relative to
its length.
"""


def save_gradients(model: nn.Module, file: Path) -> None:
    """By names that both ways share: of the language model's layers, and of the connector."""
    save_file(
        {name.rpartition("language_model.")[2]: p.grad for name, p in model.named_parameters() if p.grad is not None},
        file,
    )


def apart(losses: tuple[float, float], files: tuple[Path, Path]) -> dict[str, Any]:
    """How far our loss and gradients are from the baseline's, which come second; the parameter whose gradient is
    furthest.
    """
    ours, theirs = (load_file(file) for file in files)
    if ours.keys() != theirs.keys():
        sys.exit(
            f"benchmarks: gradients of {len(ours)} parameters, but the baseline trains {len(theirs)}: they are not one"
            " model"
        )
    worst = max(ours, key=lambda name: relative(ours, theirs, name))
    return {
        "loss": losses[0],
        "loss_difference": abs(losses[0] - losses[1]),
        "gradient_difference": relative(ours, theirs, worst),
        "furthest": worst,
    }


def relative(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str) -> float:
    return ((ours[name] - theirs[name]).norm() / theirs[name].norm()).item()


def check(agreement: Mapping[str, Any]) -> None:
    """Ends the benchmark where float32's numbers are not the baseline's."""
    for name, most in (("loss_difference", LOSS), ("gradient_difference", GRADIENT)):
        if not agreement[name] <= most:
            sys.exit(
                f"benchmarks: {name} to the baseline is {agreement[name]:.2g}, expected at most {most}: they do not"
                f" compute the same ({dict(agreement)})"
            )
