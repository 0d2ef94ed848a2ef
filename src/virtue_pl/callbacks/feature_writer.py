"""`FeatureWriter`: the frozen features of images that `predict` computes, in one safetensors file for each shard."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from virtue_pl.features.store import (
    DTYPES,
    FeatureIndex,
    FeatureProvenance,
    features_path,
    is_stored,
    to_named_tensors,
    write_features,
)
from virtue_pl.types import ShardImageBatch, VirtueError


@dataclass
class StartedShard:
    """Features of a shard's images so far, by content key, and the seconds that they took.

    Example:
        >>> StartedShard().images
        {}
    """

    images: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0


class FeatureWriter(Callback):
    """Callback that writes the features of a `predict` run over images.

    They go into a folder in each folder of shards (`virtue_pl.features.store`).

    A shard's file is written after its last batch; a stopped run goes on with the missing shards. It is no
    BasePredictionWriter, since Lightning wants a batch's indices for one, and a stream has none.

    Args:
        folder: name of the folder of features in each folder of shards; the data module's `features` too.
        dtype: of the stored numbers: float32 keeps them exactly, float16 and bfloat16 take half the space.

    Example:
        >>> trainer = Trainer(callbacks=[FeatureWriter(dtype="float32")])  # doctest: +SKIP
        >>> trainer.predict(model, datamodule=images)
    """

    def __init__(self, folder: str = "features", dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise VirtueError(f"FeatureWriter.dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        self.folder = folder
        self.dtype = dtype
        self.streams: dict[str, str] = {}
        self.started: dict[Path, StartedShard] = {}
        self.written: dict[Path, FeatureProvenance] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the networks' fingerprints; Lightning keeps no predictions."""
        trainer.predict_loop.return_predictions = False
        self.streams = dict(pl_module.collator.fingerprints)  # type: ignore[union-attr, arg-type]
        self.clock = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(batch, ShardImageBatch):
            raise VirtueError(
                f"FeatureWriter stores features of images, found a {type(batch).__name__}: set data.init_args.predict"
                " to images"
            )
        folder = Path(batch.folder) / self.folder
        began, self.clock = self.clock, time.perf_counter()
        making = self.written.setdefault(folder, FeatureProvenance(self.dtype, self.streams, batch.fingerprint))
        path = features_path(folder, batch.shard)
        if path not in self.started and is_stored(path, making):
            return
        shard = self.started.setdefault(path, StartedShard())
        for key, features in zip(batch.keys, outputs, strict=True):
            shard.images[key] = to_named_tensors(features, self.dtype)
        shard.seconds += self.clock - began
        if batch.last:
            write_features(path, self.started.pop(path).images, making, shard.seconds)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write each folder's features.json when all ranks are done; a rank writes those of its own folders."""
        trainer.strategy.barrier()
        while self.written:
            folder, making = self.written.popitem()
            FeatureIndex.from_files(folder, making).write(folder)
