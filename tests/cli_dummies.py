"""Small stand-ins for a model and its data, given to the command by class_path."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.types import VirtueError


class Encoder(VirtueModule):
    def __init__(
        self, width: int, optimization: Optimization | None = None, weights: str | None = None, frozen: bool = False
    ) -> None:
        super().__init__(optimization, weights, "", frozen)
        self.width = width
        self.linear = nn.Linear(2, width)
        self.load_and_freeze()


class WideEncoder(Encoder):
    def __init__(self, width: int, factor: int) -> None:
        super().__init__(factor * width)


class Joint(nn.Module):
    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.linear = nn.Linear(channels, hidden)


class Chunked(GradientCache):
    def __init__(self, chunk_size: int) -> None:
        super().__init__(chunk_size)


class Root(VirtueModule):
    """One linear layer to train; the rest is there to be configured."""

    def __init__(
        self,
        encoder: Encoder,
        connector: Callable[[int, int], Joint],
        segmentation: Encoder | None = None,
        gradient_cache: Chunked | None = None,
        scales: dict[str, float] | None = None,
        optimization: Optimization | None = None,
        weights: str | None = None,
        sigterm_at: int | None = None,
        by_itself: bool = False,
    ) -> None:
        super().__init__(optimization, weights)
        self.automatic_optimization = not by_itself
        if scales and min(scales.values()) < 0:
            raise VirtueError(f"scales are {scales}, expected none below 0")
        self.encoder = encoder
        self.connector = connector(encoder.width, 3)
        self.segmentation = segmentation
        self.gradient_cache = gradient_cache
        self.sigterm_at = sigterm_at
        self.seen: list[int] = []
        self.save_hyperparameters()
        self.load_and_freeze()

    @property
    def collator(self) -> Any:
        return self.encoder.width

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(self.global_step)
        if self.global_step == self.sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.connector.linear(self.encoder.linear(batch)).square().mean()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/zero", 0.0)


class Data(LightningDataModule):
    """Zeros. `connected` is what the model told the data."""

    def __init__(self, folder: str, batch_size: int = 4, rows: int = 16) -> None:
        super().__init__()
        self.folder = folder
        self.batch_size = batch_size
        self.rows = rows
        self.connected: Any = None

    def connect(self, collator: Any) -> None:
        self.connected = collator

    def setup(self, stage: str) -> None:
        if self.rows < 0:
            raise VirtueError(f"data.folder: there are no shards in {self.folder}; run virtue-pl shards")

    def describe(self) -> list[dict[str, Any]]:
        return [{"split": "train", "path": self.folder, "shards": 2, "rows": self.rows}]

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.zeros(self.rows, 2), self.batch_size, drop_last=True)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self.train_dataloader()
