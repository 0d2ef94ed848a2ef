"""Checks that a model, its data and the trainer fit together, before the first step."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer

from virtue_pl.types import VirtueError


def check_run(model: LightningModule, data: Any, trainer: Trainer) -> None:
    """Raise VirtueError for a loss whose negatives the data lacks, and for clipping that would not happen."""
    loss, batch_size = getattr(model, "loss", None), getattr(data, "batch_size", None)
    hard = most_negatives(data)
    if loss is not None and hard == 0:
        if loss.needs_negatives:
            raise VirtueError(
                f"{loss.needs_negatives}, but the data gives no hard negatives: set it to 0, or the data's"
                " num_negatives to at least 1"
            )
        if batch_size is not None and batch_size * trainer.world_size == 1:
            raise VirtueError(
                "data.batch_size is 1 on one rank without hard negatives: a query has only its target, and nothing is"
                " learned; raise it"
            )
    if trainer.gradient_clip_val and not model.automatic_optimization:
        raise VirtueError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val:g}, but {type(model).__name__} optimizes by"
            " itself: leave it out, and clip there"
        )


def most_negatives(data: Any) -> int | None:
    """Return the hard negatives of a query in a data module, in a mixture the most of any part.

    None where it has no such setting.
    """
    parts = getattr(data, "parts", None)
    if isinstance(parts, dict):
        counts = [most_negatives(part) for part in parts.values()]
        return max((count for count in counts if count is not None), default=None)
    found: int | None = getattr(data, "num_negatives", None)
    return found
