"""`Throughput`: a training's speed, what it waits for, and the size of its gradients and memory, in the log."""

from __future__ import annotations

import resource
import time
from collections import deque
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from virtue_pl.callbacks.compilation import CompileRegions
from virtue_pl.engine.estimation.devices import find_device
from virtue_pl.engine.estimation.row_flops import flops_per_token
from virtue_pl.types import EncoderBatch, PairBatch, VirtueError


class Step(NamedTuple):
    """Cost of a step on one process: its samples and tokens, seconds in all and until the batch was there, operations.

    Example:
        >>> Step(samples=8, tokens=800, seconds=2.0, waited=0.5, flops=0.0).waited
        0.5
    """

    samples: int
    tokens: int
    seconds: float
    waited: float
    flops: float


class Throughput(Callback):
    """Callback that logs the speed of the last steps, on all processes, and what else says how a training goes.

    Each is written as often as the trainer logs (`log_every_n_steps`), and none reads anything from the device:
    `train/samples_per_second`, which stands in the progress bar, too; `train/tokens_per_second`, of texts and images;
    `train/data_wait`, the share of the time between a step's end and the next one's start, in which the batch is read
    and moved; `train/mfu`, the model FLOPs utilisation, of a GPU whose peak is known; `train/grad_norm`, the norm of
    all gradients before they are clipped; `train/peak_memory_gib`, of the device, or of the process on a CPU;
    `train/progress`, the share of the run's steps that are done. Validation does not count.

    Args:
        window: number of steps to average over.

    Example:
        >>> trainer = Trainer(callbacks=[Throughput(window=50)])
    """

    def __init__(self, window: int = 20) -> None:
        if window < 1:
            raise VirtueError(f"Throughput.window is {window}, expected at least 1 step")
        self._steps: deque[Step] = deque(maxlen=window)
        self._ended = self._began = 0.0
        self._peak: float | None = None
        self._flops_per_token: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._peak = peak_of(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()
        if self._peak is None:
            return
        for name, part in parts_of(batch).items():
            if name not in self._flops_per_token and len(part):
                context = trainer.precision_plugin.forward_context()
                self._flops_per_token[name] = flops_per_token(pl_module, part, context)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        norm = gradient_norm(pl_module)
        if norm is not None:
            pl_module.log("train/grad_norm", norm, batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        tokens = {name: sum(part.layout.token_counts) for name, part in parts_of(batch).items()}
        flops = sum(self._flops_per_token.get(name, 0.0) * count for name, count in tokens.items())
        self._steps.append(
            Step(len(batch), sum(tokens.values()), now - self._ended, max(0.0, self._began - self._ended), flops)
        )
        self._ended = now
        total = Step(*map(sum, zip(*self._steps, strict=True)))
        processes = trainer.world_size
        pl_module.log(
            "train/samples_per_second", total.samples * processes / total.seconds, prog_bar=True, batch_size=1
        )
        found = {"data_wait": total.waited / total.seconds, "peak_memory_gib": peak_memory(pl_module.device) / 2**30}
        if total.tokens:
            found["tokens_per_second"] = total.tokens * processes / total.seconds
        if self._peak is not None:
            found["mfu"] = total.flops / total.seconds / self._peak
        steps = trainer.estimated_stepping_batches
        if 0 < steps < float("inf"):
            found["progress"] = trainer.global_step / steps
        for name, value in found.items():
            pl_module.log(f"train/{name}", value, batch_size=1)


def parts_of(batch: Any) -> dict[str, EncoderBatch]:
    """Return the parts of a contrastive batch that are encoded, by name; none of another batch."""
    if not isinstance(batch, PairBatch):
        return {}
    parts = {"queries": batch.queries, "targets": batch.targets, "negatives": batch.negatives}
    return {name: part for name, part in parts.items() if part is not None}


def peak_of(trainer: Trainer, model: LightningModule) -> float | None:
    """Return the most operations a second of a process's device in the run's precision.

    None where it is not known (a CPU, another GPU), and where the model's operations are not counted: a sharded or
    compiled one, and one that does not encode.
    """
    compiled = any(isinstance(one, CompileRegions) for one in trainer.callbacks)  # type: ignore[attr-defined]
    if compiled or not hasattr(model, "encode") or getattr(model, "sharding", None) is not None:
        return None
    device = find_device(device_name(model.device))
    low = str(trainer.precision).startswith(("bf16", "16"))
    return None if device is None else device.peak(torch.bfloat16 if low else torch.float32)


def device_name(device: torch.device) -> str:
    """Return the name that a GPU's driver gives it; another device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors have taken on a GPU since the run began, or that the process has on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gradient_norm(model: Any) -> torch.Tensor | None:
    """Return the norm of all gradients, on their device; over all ranks' shards. None where there are none."""
    if getattr(model, "sharding", None) is not None:
        norm: torch.Tensor = model.sharding.norm()
        return norm
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
