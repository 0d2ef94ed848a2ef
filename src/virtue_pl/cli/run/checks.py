"""Checks that a model, its data, the trainer and the machine fit together, before the first step.

What the settings tell is told by `check_run`, for `fit` and `check` alike; `check_trial` reads the first rows and tries
a batch, of which `fit` does what takes no time (`check_before_fit`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from virtue_pl.callbacks import BestCheckpoint
from virtue_pl.cli.run.trial import LOOKED_AT, Trial, data_is_there, first_rows, try_collate, try_run
from virtue_pl.engine.precision import check_precision
from virtue_pl.types import VirtueError

SMALL = 200_000_000
"""Parameters of a model of which `fit` tries a batch, if a callback waits for a metric."""


def check_run(model: LightningModule, data: Any, trainer: Trainer) -> None:
    """Raise VirtueError, which names the key to turn, for settings that do not fit together; nothing is read."""
    check_negatives(model, data, trainer)
    if trainer.gradient_clip_val and not model.automatic_optimization:
        raise VirtueError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val:g}, but {type(model).__name__} optimizes by"
            " itself: leave it out, and clip there"
        )
    check_parts(model)
    check_alignment(model, trainer)
    check_length(model, trainer)


def check_trial(model: LightningModule, data: Any, trainer: Trainer) -> Trial:
    """Try a batch (`try_run`). Raises VirtueError for one that fails, and for a callback's metric that nobody logs."""
    if not any(parameter.is_meta for parameter in model.parameters()):  # which is built for another machine
        check_precision(str(trainer.precision), trainer.strategy.root_device)
    check_rows(model, data, trainer)
    trial = try_run(model, data, trainer)
    check_metrics(trainer, trial)
    return trial


def check_before_fit(model: LightningModule, data: Any, trainer: Trainer) -> None:
    """Do what of `check_trial` takes no time: the first rows, and a batch where a callback waits for a metric.

    A batch is tried with a copy of the model, where that is small.
    """
    check_rows(model, data, trainer)
    size = sum(parameter.numel() for parameter in model.parameters())
    if hasattr(data, "first_samples") and any(monitors(trainer)) and 0 < size <= SMALL:
        check_trial(copy.deepcopy(model), data, trainer)


def check_negatives(model: LightningModule, data: Any, trainer: Trainer) -> None:
    """Raise VirtueError for a loss whose negatives the data lacks."""
    loss, batch_size = getattr(model, "loss", None), getattr(data, "batch_size", None)
    if loss is None or most_negatives(data) != 0:
        return
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


def check_parts(model: LightningModule) -> None:
    """Raise VirtueError for a connector that reads what the segmentation model does not give."""
    connector, segmentation = getattr(model, "connector", None), getattr(model, "segmentation", None)
    backbone = getattr(segmentation, "backbone", None)
    if "mask_logits" in getattr(connector, "requires", ()) and getattr(backbone, "predict_masks", True) is False:
        raise VirtueError(
            f"model.connector: {type(connector).__name__} reads the predicted mask, but {type(backbone).__name__}"
            " predicts none: set model.init_args.segmentation.init_args.backbone.init_args.predict_masks to true, or"
            " name another connector (configs/connector/convolution.yaml)"
        )
    encoder = getattr(getattr(model, "prompt_encoder", None), "encoder", None)
    if "focus" in getattr(connector, "requires", ()) and getattr(encoder, "hints", None) is None and is_own(encoder):
        raise VirtueError(
            f"model.connector: {type(connector).__name__} reads the prompt's area, but {type(encoder).__name__} draws"
            " none: set dense_hints to true in model.init_args.prompt_encoder.init_args.encoder and"
            " model.init_args.segmentation.init_args.backbone"
        )
    names = getattr(getattr(connector, "summary", None), "names", None)
    trunk = getattr(getattr(backbone, "trunk", None), "name", None)
    if names is not None and names.trunk != trunk and (trunk is not None or is_own(backbone)):
        raise VirtueError(
            f"model.connector: its class names are those of the trunk {names.trunk}, but the segmentation model"
            f" ({type(backbone).__name__}) reads {trunk or 'none'}: set class_names to null"
            " (configs/connector/mask_alone.yaml), or name the same trunk"
        )


def is_own(part: Any) -> bool:
    """Return whether a part's class is this package's, whose attributes say what it does not compute."""
    return type(part).__module__.startswith("virtue_pl.")


def check_alignment(model: LightningModule, trainer: Trainer) -> None:
    """Raise VirtueError for an alignment stage without a summary, or of a model that is sharded."""
    steps = getattr(model, "alignment_steps", 0)
    if not steps:
        return
    if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.world_size > 1:
        raise VirtueError(
            f"model.init_args.alignment_steps is {steps}, but trainer.strategy shards the model over"
            f" {trainer.world_size} processes, which has no alignment stage: set alignment_steps to 0"
        )
    if hasattr(model, "connector") and getattr(model.connector, "summary", None) is None:
        raise VirtueError(
            f"model.init_args.alignment_steps is {steps}, but the connector ({type(model.connector).__name__}) makes no"
            " summary to align: set alignment_steps to 0, or `summary: true` in the connector, where it has that"
        )


def check_length(model: LightningModule, trainer: Trainer) -> None:
    """Raise VirtueError for a run without end whose learning rate would be scheduled over its length."""
    optimization = getattr(model, "optimization", None)
    endless = trainer.max_steps == -1 and trainer.max_epochs == -1
    if endless and getattr(optimization, "schedule", "constant") != "constant":
        raise VirtueError(
            "trainer.max_steps and trainer.max_epochs are both -1, a run without end, but the learning rate falls over"
            f" its length (optimization.schedule is {optimization.schedule}): set one of them, or schedule to constant"  # type: ignore[union-attr]
        )


def check_rows(model: LightningModule, data: Any, trainer: Trainer) -> None:
    """Raise VirtueError for a prompt mode, of training or of validation, that one of the first rows has nothing for.

    Only shards on this machine are read. Raises VirtueError for data that is not there, too, but where the model is on
    the meta device, where it may be missing.
    """
    may_miss = any(parameter.is_meta for parameter in model.parameters())
    if not hasattr(data, "first_samples") or (may_miss and not data_is_there(data)):
        return
    rankings = first_rows(data, "val", LOOKED_AT) if trainer.limit_val_batches else []
    try_collate(model.collator, first_rows(data, "train", LOOKED_AT), rankings)  # type: ignore[attr-defined]


def check_metrics(trainer: Trainer, trial: Trial) -> None:
    """Raise VirtueError for a callback that waits for a metric that the model does not log.

    The best checkpoint of a run that validates on nothing is none, and no mistake.
    """
    validates = any(logged.startswith("val/") for logged in trial.metrics)
    for name, metric in monitors(trainer):
        if trial.untried and not metric.startswith("train"):
            continue
        if name == BestCheckpoint.__name__ and not validates:
            continue
        if metric.removesuffix("_step").removesuffix("_epoch") in trial.metrics or metric in trial.metrics:
            continue
        closest = get_close_matches(metric, sorted(trial.metrics), 1)
        hint = f"did you mean {closest[0]!r}? There are" if closest else "there are"
        reason = "" if validates or not metric.startswith("val") else " (the run validates on nothing)"
        raise VirtueError(
            f"trainer.callbacks: {name} monitors {metric!r}, which nobody logs{reason}; {hint}"
            f" {', '.join(sorted(trial.metrics)) or 'none'}"
        )


def monitors(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Yield the name of each callback that waits for a metric, and the metric."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        metric = getattr(callback, "monitor", None)
        if isinstance(metric, str):
            yield type(callback).__name__, metric


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
