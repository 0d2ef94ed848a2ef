"""Tables that `check` prints of a run: parts, adapters, data, length of the training, and checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.cli.run.folder import other_runs
from virtue_pl.engine.gradient_cache import FullBatch
from virtue_pl.types import VirtueError

CHECKED_ROWS = 64
"""Training rows that are read, of each dataset, to foresee which the model cannot use."""
NO_DATA = "data: none is configured, so there is nothing to train on"


class Plan(NamedTuple):
    """Length of a run. batches: of one rank and epoch. steps: optimizer steps; None where the run has no end.

    Example:
        >>> Plan(batches=100, samples_per_epoch=3200, steps=None).steps is None
        True
    """

    batches: int
    samples_per_epoch: int
    steps: int | None


def show_data(console: Console, trainer: Trainer, model: LightningModule, data: Any) -> str | None:
    """Print the data module's sources and the training's length. Returns a sentence if training cannot start."""
    if data is None:
        return NO_DATA
    data.trainer = trainer  # as `fit` does first: ranks and epochs come from it
    data.setup("fit")
    console.print(sources_table(data.describe()))
    plan = plan_run(trainer, len(data.train_dataloader()), data.batch_size)
    console.print(facts_table("training", training_facts(trainer, model, plan, data.batch_size)))
    for count, problems in first_problems(data):
        named = [(key, problem) for key, problem in islice(problems.items(), 5)]
        console.print(facts_table(f"rows that are skipped: {len(problems)} of the first {count}", named))
    return (
        "data: the training data is smaller than one batch; change data.init_args.batch_size"
        if plan.batches == 0
        else None
    )


def first_problems(data: Any) -> Iterable[tuple[int, dict[str, str]]]:
    """Yield how many of the first training rows were read, and the problem of each of no use, where there is any."""
    find = getattr(data, "find_first_problems", None)
    if find is not None and (found := find(CHECKED_ROWS))[1]:
        yield found


def show_described(console: Console, trainer: Trainer, model: LightningModule, data: Any) -> str | None:
    """Print the tables of `show_data` for data that is not connected to the model.

    Data that is not there is printed, and allowed. Returns a sentence where none is configured.
    """
    if data is None:
        return NO_DATA
    try:
        data.trainer = trainer
        data.setup("fit")
        console.print(sources_table(data.describe()))
        plan = plan_run(trainer, data.steps, data.batch_size)
        console.print(facts_table("training", training_facts(trainer, model, plan, data.batch_size)))
    except VirtueError as error:
        plan = plan_run(trainer, data.steps_per_epoch or 0, data.batch_size)
        console.print(
            facts_table("training", [("data", str(error)), *training_facts(trainer, model, plan, data.batch_size)])
        )
    return None


def plan_run(trainer: Trainer, batches: int, batch_size: int) -> Plan:
    """Return a run's length for `batches` of `batch_size` samples a rank and epoch, under the trainer's limits."""
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epoch_steps = math.ceil(batches / trainer.accumulate_grad_batches)
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * epoch_steps)
    return Plan(batches, batches * batch_size * trainer.world_size, min(ends) if ends else None)


def never_validates(trainer: Trainer, plan: Plan) -> int | None:
    """Return the batches between two validations where the run ends before the first one; None where it does not."""
    interval = trainer.val_check_interval
    if plan.steps is None or not trainer.limit_val_batches or not isinstance(interval, int | float):
        return None
    batches = interval if isinstance(interval, int) else int(plan.batches * interval)
    return batches if batches > plan.steps * trainer.accumulate_grad_batches else None


def training_facts(trainer: Trainer, model: LightningModule, plan: Plan, batch_size: int) -> Iterable[tuple[str, str]]:
    """Yield name and value of the facts about training: samples, steps, global batch, chunks."""
    yield "samples per epoch", f"{plan.samples_per_epoch:,} in {plan.batches:,} batches a rank"
    yield (
        "optimizer steps",
        "without end (max_steps and max_epochs are -1)" if plan.steps is None else f"{plan.steps:,}",
    )
    yield "global batch", f"{batch_size * trainer.world_size:,} = {batch_size} x {trainer.world_size} ranks"
    if trainer.accumulate_grad_batches > 1:
        yield "accumulation", f"{trainer.accumulate_grad_batches} batches a step; negatives come from one batch only"
    if (interval := never_validates(trainer, plan)) is not None:
        batches = (plan.steps or 0) * trainer.accumulate_grad_batches
        yield (
            "validation",
            f"never: trainer.val_check_interval is {interval:,} batches, but the run ends after {batches:,}: lower it",
        )
    yield "chunks", (getattr(model, "gradient_cache", None) or FullBatch()).describe(batch_size)


def parts_table(model: LightningModule) -> Table:
    """Return a table of the trainable and frozen parameters of the root's children, and of the root."""
    table = Table("part", "class", "trainable", "frozen", title="parts")
    for name, part in model.named_children():
        table.add_row(name, type(part).__name__, *counts(part))
    table.add_section()
    table.add_row("all", type(model).__name__, *counts(model))
    return right_aligned(table, 2, 3)


def adapter_tables(model: LightningModule) -> Iterable[Table]:
    """Yield a table of the modules with adapters; none without adapters.

    Modules of the same name in all layers have one row.
    """
    layers: dict[str, list[nn.Module]] = {}
    for name, module in adapter_layers(model):
        layers.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(module)
    if layers:
        table = Table(Column("modules", overflow="fold"), "adapter", "number", "trainable", title="adapters")
        for name, modules in layers.items():
            kind = (
                "DoRA"
                if any("lora_magnitude_vector" in parameter for parameter, _ in modules[0].named_parameters())
                else "LoRA"
            )
            table.add_row(
                name,
                kind,
                f"{len(modules):,}",
                f"{sum(int(counts(module)[0].replace(',', '')) for module in modules):,}",
            )
        yield right_aligned(table, 2, 3)


def counts(module: nn.Module) -> tuple[str, str]:
    """Return the numbers of trainable and of frozen parameters, as text."""
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return f"{trainable:,}", f"{sum(parameter.numel() for parameter in module.parameters()) - trainable:,}"


def run_facts(trainer: Trainer, config: Any, model: LightningModule | None = None) -> Iterable[tuple[str, str]]:
    """Yield name and value of the facts about the run: devices, folders, checkpoints, seed."""
    yield (
        "devices",
        (
            f"{trainer.world_size} x {type(trainer.accelerator).__name__}, {type(trainer.strategy).__name__}, precision"
            f" {trainer.precision}"
        ),
    )
    note = "; it holds a run: fit wants --ckpt_path last, or another --shared.run" if any(other_runs(config)) else ""
    yield "folder", f"{trainer.default_root_dir}{note}"
    for logger in trainer.loggers:
        yield (
            "logger",
            f"{type(logger).__name__} in {logger.log_dir if logger.log_dir is not None else logger.save_dir}",
        )
    callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    for callback in callbacks:
        yield "checkpoints", describe_checkpoints(callback)
    if callbacks and not any(callback.save_last for callback in callbacks):
        yield "checkpoints", "no last one (save_last of a ModelCheckpoint), so a stopped run cannot go on"
    yield "starts from", str(config.get("ckpt_path") or describe_start(model))
    yield "seed", str(config.get("seed_everything"))


def describe_start(model: LightningModule | None) -> str:
    """Return the model that training starts from: path, class, fingerprint and adapters; or that there is none."""
    start = getattr(model, "started_from", None)
    if start is None:
        return "the beginning"
    name, trained = start["class_path"].rpartition(".")[2], start["adapters"]
    return f"{start['path']}: {name}, fingerprint {start['fingerprint'][:12]}, adapters that are trained: {trained}"


def describe_checkpoints(callback: ModelCheckpoint) -> str:
    """Return one line: the checkpoints' folder, which of them stay, and whether a run goes on from there."""
    saved = "the last" if callback.monitor is None else f"the best {callback.save_top_k} by {callback.monitor}"
    goes_on = "; --ckpt_path last goes on from there" if callback.save_last else ""
    return f"{callback.dirpath or 'in the logger folder'}; {saved}{goes_on}"


def facts_table(title: str, facts: Iterable[tuple[str, str]]) -> Table:
    """Return a table of two columns, name and value."""
    table = Table(title=title, show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    return table


SIDE_BY_SIDE = 5
"""Largest number of sources that have a column each, with all their entries; more of them have a row each, with their
numbers.
"""


def sources_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the sources in `describe()`: a column for each of a few, or a row for each of many."""
    if len(sources) > SIDE_BY_SIDE:
        return counts_table(sources)
    names = list(dict.fromkeys(name for source in sources for name in source))
    table = Table(names[0], *(cell(source[names[0]]) for source in sources), title="data")
    for name in names[1:]:
        table.add_row(name.replace("_", " "), *(cell(source.get(name)) for source in sources))
    return right_aligned(table, *range(1, len(sources) + 1))


def counts_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with one row for each source: its first entry and its numbers."""
    first = next(iter(sources[0]))
    numbers = list(
        dict.fromkeys(name for source in sources for name, value in source.items() if isinstance(value, int | float))
    )
    table = Table(Column(first, overflow="fold"), *(name.replace("_", " ") for name in numbers), title="data")
    for source in sources:
        table.add_row(str(source[first]), *(cell(source.get(name)) for name in numbers))
    return right_aligned(table, *range(1, len(numbers) + 1))


def cell(value: Any) -> str:
    """Return a value as text: a number with commas, a checksum or a long text cut, a path whole."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int | float) else str(value)
    if " " in text:
        return text if len(text) <= 40 else f"{text[:37]}..."
    return text if len(text) < 64 or "/" in text else f"{text[:12]}..."


def right_aligned(table: Table, *columns: int) -> Table:
    """Return the table with the numbered columns aligned to the right."""
    for number in columns:
        table.columns[number].justify = "right"
        table.columns[number].overflow = "fold"
    return table
