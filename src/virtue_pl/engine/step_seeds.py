"""Random numbers of a training step that depend on the run's seed, the step and the rank alone."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning import LightningModule

KEY = "step_seed"
"""Entry of a checkpoint: the seed of all steps of its run."""


class StepSeeds:
    """Seeds torch's generators before every training batch, so that a run that resumes drops out what it would have.

    The seed of all steps is that of the process's generator when training starts, or the one of the checkpoint.

    Example:
        >>> seeds = StepSeeds()
        >>> seeds.begin()
        >>> seeds.seed_batch(number=7, rank=0)
        >>> first = torch.rand(2)
        >>> seeds.seed_batch(number=7, rank=0)
        >>> torch.equal(torch.rand(2), first)
        True
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def begin(self) -> None:
        """Take the seed of this process's generator, unless a checkpoint gave one."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def seed_batch(self, number: int, rank: int) -> None:
        """Seed the generators of every device for a training batch, counted over all epochs."""
        text = f"{self.seed} {number} {rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big"))

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write the seed into a checkpoint."""
        checkpoint[KEY] = self.seed

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed of a checkpoint; one of an earlier version has none."""
        self.seed = checkpoint.get(KEY)


def number_of_batch(module: LightningModule) -> int:
    """Return the number of training batches that were begun so far, over all epochs, the present one included."""
    return int(module.trainer.fit_loop.epoch_loop.batch_progress.total.ready)
