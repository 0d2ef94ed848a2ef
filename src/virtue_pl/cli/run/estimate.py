"""A run's cost before it starts: the model built without weights, and its step's memory, operations and hours."""

from __future__ import annotations

import gc
import warnings
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.cli.described import DescribedCLI, leave_out_weights
from virtue_pl.cli.run.checks import check_run, most_negatives
from virtue_pl.cli.run.estimate_rows import RowSizes, batch_maker, make_batch
from virtue_pl.cli.run.summary import plan_run
from virtue_pl.engine.estimation.devices import Device
from virtue_pl.engine.estimation.estimate import Ranks, StepEstimate, estimate_step
from virtue_pl.engine.estimation.forked import can_fork
from virtue_pl.engine.estimation.step_trace import KINDS
from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import DataError, PairBatch, VirtueError

USABLE = 0.9
"""Share of a device's memory that tensors may take: the rest is the driver's, or lost between them."""
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "32-true": None, "32": None}
"""Lightning's precisions, and the types of products or of all weights that they mean."""


class EstimateCLI(DescribedCLI):
    """`DescribedCLI` that reads no weights of any model, and uses no device that is here.

    precision: the run's own, "auto" as a GPU takes it.

    Example:
        >>> cli = EstimateCLI("fit", ["--config", "configs/virtue_2b.yaml"])  # doctest: +SKIP
    """

    precision: str

    def before_instantiate_classes(self) -> None:
        self.unread = dict(leave_out_weights(self.config.model, "model"))
        asked = str(self.config.trainer.precision or "32-true")
        self.precision = "bf16-mixed" if asked == "auto" else asked
        if self.precision not in {**MIXED, **TRUE}:
            raise VirtueError(
                f"trainer.precision is {self.precision}, expected one of {', '.join({**MIXED, **TRUE})} for an estimate"
            )
        self.config.trainer.precision, self.config.trainer.accelerator = "32-true", "cpu"

    def instantiate_classes(self) -> None:
        with skip_weights():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Leave the data alone, which an estimate does not read."""


def check_training(cli: EstimateCLI) -> None:
    """Raise VirtueError for a config that trains nothing, and for settings that `fit` refuses."""
    model, name = cli.model, type(cli.model).__name__
    if not is_overridden("training_step", model):
        raise VirtueError(
            f"estimate: {name} has no training step, expected the config of a training, which `fit` takes"
            " (--config configs/virtue_2b.yaml)"
        )
    if cli.datamodule is None:
        raise VirtueError("data: none is configured, so that there is no batch to estimate")
    if isinstance(model, VirtueModule) and model.optimization is None:
        raise VirtueError(f"{name} has no `optimization`, expected one to train it with: give it `optimization`")
    check_run(model, cli.datamodule, cli.trainer)


def estimate_run(cli: EstimateCLI, sizes: RowSizes) -> tuple[StepEstimate, dict[str, int]]:
    """Return the cost of a run's step, and the tokens that the language model reads of a query and of a target.

    The model is moved to the meta device. Raises VirtueError for a step that cannot run there.
    """
    model, trainer = cli.model, cli.trainer
    ranks = Ranks(
        trainer.world_size, isinstance(trainer.strategy, ModelParallelStrategy), trainer.accumulate_grad_batches
    )
    model.to("meta")
    if TRUE.get(cli.precision) is not None:
        model.to(TRUE[cli.precision])
    model.train()
    with ExitStack() as stack:
        gc.disable()  # which would look through a large model's many small objects again and again
        stack.callback(gc.enable)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(patch.object(model, "log", lambda *_, **__: None))
        if getattr(model, "alignment_steps", 0):
            stack.enter_context(patch.object(model, "alignment_steps", 0))
        try:
            batches = batch_maker(model, sizes)
            step = estimate_step(model, batches, MIXED.get(cli.precision), sizes.negatives, ranks, forks=can_fork())
            return step, token_counts(model, sizes)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, VirtueError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise VirtueError(
                f"estimate: a step of this model does not run on the meta device ({reason}); VIRTUE_DEBUG=1 shows where"
            ) from error


def token_counts(model: Any, sizes: RowSizes) -> dict[str, int]:
    """Return the tokens that a language model reads of a row of each part of a batch; none for another model."""
    batch = make_batch(model, sizes, 1)
    if not isinstance(batch, PairBatch):
        return {}
    return {name: model.token_counts(part.to("meta"))[0] for name, part in parts_of(batch).items()}


def parts_of(batch: PairBatch) -> dict[str, Any]:
    """Return the parts of a batch that are encoded, by name."""
    parts = {"query": batch.queries, "target": batch.targets, "negative": batch.negatives}
    return {name: part for name, part in parts.items() if part is not None}


def report_of(cli: EstimateCLI, step: StepEstimate, tokens: dict[str, int], device: Device, share: float) -> Any:
    """Return what an estimate says, as a mapping for JSON: bytes, operations and hours."""
    model, trainer, batch_size = cli.model, cli.trainer, cli.datamodule.batch_size
    limit = int(USABLE * device.memory)
    chunk = chunk_of(model, step, batch_size, max(tokens.values(), default=1), limit)
    flops = step.flops(batch_size, chunk)
    memory, ranks = step.memory(batch_size, chunk), step.ranks.number
    dtype = MIXED.get(cli.precision) or TRUE.get(cli.precision) or torch.float32
    seconds = sum(flops.values()) * step.ranks.accumulation / (device.peak(dtype) * share)
    steps = number_of_steps(trainer, cli.datamodule)
    return {
        "parameters": {
            name: counts(part) for name, part in [*model.named_children(), ("all", model)] if counts(part)["total"]
        },
        "precision": cli.precision,
        "ranks": ranks,
        "batch_size": batch_size,
        "chunk_size": chunk,
        "tokens": tokens,
        "memory": {**{kind: memory[kind] for kind in KINDS}, "total": sum(memory.values())},
        "stored_on_host": step.stored(batch_size, chunk) if step.stored_on_host else 0,
        "device_memory": device.memory,
        "flops": {**flops, "total": sum(flops.values()), "model": step.model_flops(batch_size, chunk)},
        "seconds_a_step": seconds,
        "utilisation": share,
        "steps": steps,
        "hours": None if steps is None else steps * seconds / 3600,
        "device_hours": None if steps is None else steps * seconds * ranks / 3600,
        "largest_chunk": step.largest_chunk(batch_size, limit) if step.chunked else None,
        "largest_batch": step.largest_batch(chunk, limit),
        "largest_whole_batch": step.largest_batch(None, limit),
    }


def counts(module: torch.nn.Module) -> dict[str, int]:
    """Return the number of a module's parameters, and of those that are trained."""
    parameters = list(module.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"total": sum(parameter.numel() for parameter in parameters), "trained": trained}


def chunk_of(model: Any, step: StepEstimate, batch_size: int, tokens: int, limit: int) -> int | None:
    """Return the rows of a chunk of a run; None where the batch is encoded as a whole.

    tokens: of the longest row. limit: the bytes that "auto" may take, which takes its share of what the rest leaves.
    """
    cache = getattr(model, "gradient_cache", None)
    if not isinstance(cache, GradientCache):
        return None
    rows = cache.chunk_size or batch_size
    if cache.chunk_tokens is not None:
        rows = min(rows, max(1, cache.chunk_tokens // tokens))
    elif cache.automatic:
        free = limit - sum(step.memory(1, None).values())
        rows = step.largest_chunk(batch_size, limit - int((1 - cache.memory_share) * free)) or 1
    return rows if rows < batch_size else None


def number_of_steps(trainer: Trainer, data: Any) -> int | None:
    """Return the optimizer's steps of a run; None for a run without end, or whose data is not there to be counted."""
    if trainer.max_steps >= 0:
        return trainer.max_steps
    try:
        data.trainer = trainer
        data.setup("fit")
        return plan_run(trainer, data.steps, data.batch_size).steps
    except (VirtueError, DataError):
        return None


def row_sizes(options: Any, data: Any) -> RowSizes:
    """Return the sizes of rows from a command's options, with as many hard negatives as the data gives a query."""
    return RowSizes(
        tuple(options.image),
        options.query_tokens,
        options.target_tokens,
        options.target_images,
        most_negatives(data) or 0,
        reads_features(data),
    )


def reads_features(data: Any) -> bool:
    """Return whether images' features are read from a store, in a mixture those of every part that is trained."""
    parts = getattr(data, "parts", None)
    if isinstance(parts, dict):
        weights = getattr(data, "weights", dict.fromkeys(parts, 1.0))
        return all(reads_features(part) for name, part in parts.items() if weights.get(name))
    return getattr(data, "features", None) is not None and getattr(data, "predict", "pairs") == "pairs"
