"""`FeatureWriter`: the frozen features of images that `predict` computes, in one safetensors file for each shard."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from virtue_pl.features.shard_file import FeatureFileWriter
from virtue_pl.features.store import (
    DTYPES,
    FeatureIndex,
    FeatureProvenance,
    features_path,
    file_metadata,
    is_stored,
    to_named_tensors,
)
from virtue_pl.types import ShardImageBatch, VirtueError


@dataclass
class StartedShard:
    """The file of a shard that is being encoded, and the seconds that its images took so far.

    Example:
        >>> shard = StartedShard(FeatureFileWriter(Path("shards/features/train-0000.safetensors")))  # doctest: +SKIP
        >>> shard.seconds  # doctest: +SKIP
        0.0
    """

    file: FeatureFileWriter
    seconds: float = 0.0


class FeatureWriter(Callback):
    """Callback that writes the features of a `predict` run over images.

    They go into a folder in each folder of shards (`virtue_pl.features.store`).

    Each batch's features go to disk at once, whichever shard and worker it is from, so that memory holds one batch. A
    shard's file appears after its last batch; a stopped run goes on with the missing shards. It is no
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
        self.precision: str | None = None
        self.started: dict[Path, StartedShard] = {}
        self.written: dict[Path, FeatureProvenance] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the networks' fingerprints; Lightning keeps no predictions."""
        trainer.predict_loop.return_predictions = False
        self.streams = dict(pl_module.collator.fingerprints)  # type: ignore[union-attr, arg-type]
        self.precision = str(trainer.precision)
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
        making = self.written.setdefault(
            folder, FeatureProvenance(self.dtype, self.streams, batch.fingerprint, self.precision)
        )
        path = features_path(folder, batch.shard)
        if path not in self.started and is_stored(path, making):
            return
        if path not in self.started:
            self.started[path] = StartedShard(FeatureFileWriter(path))
        shard = self.started[path]
        for key, features in zip(batch.keys, outputs, strict=True):
            shard.file.add(key, to_named_tensors(features, self.dtype))
        shard.seconds += self.clock - began
        if batch.last:
            del self.started[path]
            shard.file.save(file_metadata(shard.file.path, len(shard.file.images), making, shard.seconds))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give up the shards that are not whole."""
        self.close_started()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write each folder's features.json when all ranks are done; a rank writes those of its own folders."""
        self.close_started()
        trainer.strategy.barrier()
        while self.written:
            folder, making = self.written.popitem()
            FeatureIndex.from_files(folder, making).write(folder)

    def close_started(self) -> None:
        """Give up the shards whose last batch has not come; a later run encodes them again."""
        while self.started:
            self.started.popitem()[1].file.close()
