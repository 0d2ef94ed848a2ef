"""`EmbeddingWriter`: the embeddings of pairs that `predict` computes, in one safetensors file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from virtue_pl.features.shard_file import TYPES, StoredTensor, header
from virtue_pl.types import EmbeddingBatch, VirtueError, replace_whole

ROWS = "negative_rows"
"""Name of the rows of each negative's query, which are counted on from batch to batch."""


class EmbeddingWriter(Callback):
    """Callback that writes every `EmbeddingBatch` of a `predict` run in one process to `path`.

    Each batch goes to disk at once, so that memory holds one; the file appears when all are there. Lightning keeps no
    predictions.

    Args:
        path: the safetensors file; written under a temporary name and moved.

    Example:
        >>> trainer = Trainer(callbacks=[EmbeddingWriter("runs/mini/embeddings.safetensors")])  # doctest: +SKIP
        >>> trainer.predict(model, datamodule=pairs)
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.file: EmbeddingFile | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file. Raises VirtueError for several processes."""
        if trainer.world_size > 1:
            raise VirtueError(
                f"writing embeddings wants one process, found {trainer.world_size}: set trainer.devices to 1"
            )
        trainer.predict_loop.return_predictions = False
        self.file = EmbeddingFile(self.path)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, EmbeddingBatch):
            found = type(outputs).__name__
            raise VirtueError(f"EmbeddingWriter writes embeddings of pairs, found {found}: set data.init_args.predict")
        assert self.file is not None
        self.file.add(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.file is not None:
            self.file.save()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give up what is not whole."""
        if self.file is not None:
            self.file.close()
            self.file = None


class EmbeddingFile:
    """A safetensors file of embeddings, written batch by batch: only what is being added is in memory.

    The columns wait in files without a name beside `path`, which are gone with the process whatever stops it.

    Args:
        path: the file to write.

    Example:
        >>> file = EmbeddingFile(Path("runs/mini/embeddings.safetensors"))  # doctest: +SKIP
        >>> file.add(batch)
        >>> file.save()
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.pairs = 0
        self._open = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._columns: dict[str, StoredTensor] = {}

    def add(self, batch: EmbeddingBatch) -> None:
        """Add a batch behind those before."""
        for name, column in batch.to_tensors().items():
            self._append(name, column + self.pairs if name == ROWS else column)
        self.pairs += len(batch)

    def _append(self, name: str, column: Tensor) -> None:
        data = column.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if name not in self._files:
            self._files[name] = self._open.enter_context(TemporaryFile(dir=self.path.parent))  # type: ignore[arg-type]
        self._files[name].write(data.data)
        before = self._columns.get(name, StoredTensor(TYPES[column.dtype], (0, *column.shape[1:]), 0, 0))
        shape = (before.shape[0] + len(column), *before.shape[1:])
        self._columns[name] = StoredTensor(before.dtype, shape, 0, before.size + data.nbytes)

    def save(self) -> None:
        """Write the file under a temporary name that is then replaced, and give the columns up."""
        ordered = dict(sorted(self._columns.items(), key=lambda column: (-width(column[1]), column[0])))
        try:
            with replace_whole(self.path) as temporary, temporary.open("wb") as file:
                file.write(header(ordered, {}))
                for name in ordered:
                    self._files[name].seek(0)
                    shutil.copyfileobj(self._files[name], file)
        finally:
            self.close()

    def close(self) -> None:
        """Give up what was added and not written."""
        self._open.close()


def width(column: StoredTensor) -> int:
    """Return the bytes of a number of a column: the widest come first, so that each is aligned."""
    return next(dtype.itemsize for dtype, name in TYPES.items() if name == column.dtype)


def write_embeddings(batches: Iterable[EmbeddingBatch], path: Path) -> None:
    """Write batches, one behind the other, as one file of embeddings."""
    file = EmbeddingFile(path)
    for batch in batches:
        file.add(batch)
    file.save()
