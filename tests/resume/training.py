"""One rank of a run that notes its keys, losses, validations and last weights, and ends in a given way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from fixtures.scar_files import write_scar
from fixtures.tiny_virtue import tiny_virtue
from resume.cases import EPOCH, SAVING, STEPS, VALIDATION, Case
from virtue_pl.adapters.lora import LoRA
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mixture import MixedDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.models.connector import MaskConnector
from virtue_pl.models.virtue import Virtue

BATCH = 4
"""Rows of a step, over all ranks."""
SHARDS = {"first": [1, 2, 3, 1, 2, 1, 2, 1, 1, 2, 2, 2], "second": [2, 1, 1, 3, 1, 2, 2, 1]}
"""The rows of each image of the datasets: the first has an epoch's rows alone."""
EXCEPTION, SIGTERM = 3, 143


class Stopped(Exception):
    """What ends a run in the midst of a step."""


class Notes(Callback):
    """Writes down what a rank does, a line each, which stays whatever comes next."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **content: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(content) + "\n")

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.add(step=trainer.global_step, keys=list(batch.keys), loss=outputs["loss"].item().hex())

    def on_validation_end(self, trainer: Trainer, model: Any) -> None:
        metrics = {name: float(value).hex() for name, value in sorted(trainer.callback_metrics.items())}
        found = {name: value for name, value in metrics.items() if name.startswith("val/")}
        self.add(validation=trainer.global_step, **found)

    def on_train_end(self, trainer: Trainer, model: Any) -> None:
        if trainer.global_step == STEPS:
            self.add(weights=hash_weights(model))


class End(Callback):
    """Ends a run in the step behind `step`: by an exception, or by a signal to all ranks."""

    def __init__(self, how: str, step: int, folder: Path, rank: int, ranks: int) -> None:
        self.how, self.step, self.folder, self.rank, self.ranks = how, step, folder, rank, ranks
        (folder / f"pid{rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer: Trainer, *more: Any) -> None:
        if trainer.global_step != self.step or self.how == "finished":
            return
        if self.how not in ("SIGTERM", "kill -9"):
            raise Stopped
        if self.rank == 0:
            sent = signal.SIGTERM if self.how == "SIGTERM" else signal.SIGKILL
            others = [int((self.folder / f"pid{rank}").read_text()) for rank in range(1, self.ranks)]
            for process in (*others, os.getpid()):
                os.kill(process, sent)


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_shards(rank: int, folder: Path) -> None:
    """Write the datasets that all cases share."""
    for name, train in SHARDS.items():
        convert_scar(
            write_scar(folder / name / "scar", train=train, val=[1, 2, 2, 1]), folder / name, images_per_shard=3
        )


def make_data(case: Case, shards: Path) -> SCaRDataModule | MixedDataModule:
    """Return a case's data."""
    sampling = SamplingOptions(num_negatives=1, shuffle_buffer=5, sample_buffer=4)
    reader = ReaderOptions(num_workers=case.workers)
    batch_size = BATCH // case.ranks
    parts = {
        name: SCaRDataModule(
            str(shards / name / "SCAR_mini"),
            str(shards / name / "SCaR_eval_mini_val"),
            batch_size=batch_size,
            eval_batch_size=2,
            sampling=sampling,
            reader=reader,
        )
        for name in SHARDS
    }
    if case.data == "SCaR":
        return parts["first"]
    weights = {"first": 2.0, "second": 1.0}
    return MixedDataModule(parts, weights, batch_size, 1, steps_per_epoch=EPOCH, reader=reader)


def make_model(case: Case) -> Virtue:
    """Return a case's model: dropout in its adapters and in the connector."""
    model = tiny_virtue(partial(MaskConnector, summary=True), LoRA(rank=2, dropout=0.2, targets=("q_proj", "v_proj")))
    model.gradient_cache = GradientCache(2) if case.encoding == "gradient cache" else FullBatch()
    model.optimization = Optimization(3e-3, 0.01, 3, "constant")
    model.evaluation_modes = ("box",)
    return model


def train(
    rank: int, case: Case, shards: Path, folder: Path, notes: str, step: int, start: str | None, saves: bool = True
) -> int:
    """Run a rank until it ends as the case does behind `step`, or to the last step where `step` is that.

    Returns 0 where it came to its end, 3 where an exception came, 143 where SIGTERM did.

    Args:
        rank: among the case's ranks.
        case: what is run.
        shards: of `write_shards`.
        folder: of its checkpoints and notes.
        notes: name of the file of notes.
        step: where it ends.
        start: the checkpoint to go on from.
        saves: each step that the case goes on from.
    """
    warnings.simplefilter("default")  # pytest's errors, in a process that it forked: advice on workers, and the like
    seed_everything(7, verbose=False)
    model, data = make_model(case), make_data(case, shards)
    data.connect(model.collator)
    every = SAVING if case.end == "kill -9" else 1
    saving = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=every if saves else STEPS + 1, save_top_k=-1, enable_version_counter=False
    )
    trainer = AutoPrecisionTrainer(
        accelerator="cpu",
        devices=case.ranks,
        precision="32-true",
        max_steps=step if case.end == "finished" else STEPS,
        max_epochs=-1,
        val_check_interval=VALIDATION,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            *([LastCheckpoint()] if saves else []),
            Notes(folder / f"{notes}.rank{rank}.jsonl"),
            *([End(case.end, step, folder, rank, case.ranks)] if step != STEPS else []),
            saving,
        ],
    )
    options = {} if start is None else {"ckpt_path": str(folder / start), "weights_only": True}
    try:
        trainer.fit(model, data, **options)
    except SIGTERMException:
        return SIGTERM
    except Stopped:
        return EXCEPTION
    return 0
