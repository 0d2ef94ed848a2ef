"""A training step run on the meta device: the memory that it would hold, by kind, and its floating-point operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from virtue_pl.engine.estimation.meta_autocast import ATTENTION, ATTENTION_BACKWARD, MetaAutocast
from virtue_pl.engine.estimation.meta_outputs import MetaOutputs
from virtue_pl.types.tensors import TensorDataclass

WEIGHTS, GRADIENTS, OPTIMIZER, BATCH = "weights", "gradients", "optimizer", "batch"
ACTIVATIONS, STORED, LOGITS = "activations", "stored_representations", "logits"
KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER, BATCH, ACTIVATIONS, STORED, LOGITS)
"""Kinds of memory. Activations are all that the networks compute, temporary tensors and embeddings among them; the
stored representations are frozen networks' outputs, which wait for the second pass; the batch is pixels and ids.
"""
FROZEN, FORWARD, BACKWARD, RECOMPUTED = "frozen", "forward", "backward", "recomputed"
"""Phases whose operations are counted apart: without gradients; with them; the backward pass, and in it the forward
pass again, where activations were not stored.
"""


def attention_flops(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """Return the operations of attention, from shapes: half of all pairs of tokens if it is causal."""
    return int(sdpa_flop_count(query, key, value)) // (2 if causal else 1)


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **_: Any) -> int:
    """Return the operations of attention's backward pass, from shapes."""
    causal = bool(rest[3]) if len(rest) > 3 else False
    return int(sdpa_backward_flop_count(gradient, query, key, value)) // (2 if causal else 1)


def shape_of(value: Any) -> Any:
    """Return a tensor's shape, a list for several, and anything else as it is."""
    if isinstance(value, Tensor):
        return value.shape
    return type(value)(map(shape_of, value)) if type(value) in (list, tuple) else value


def on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """Return a formula of shapes as one of tensors."""

    def count(*arguments: Any, out_val: Any = None, **options: Any) -> int:
        options = {"out_shape": out_val, **options}
        return formula(*map(shape_of, arguments), **{name: shape_of(value) for name, value in options.items()})

    return count


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{
        operation: on_shapes(formula.__wrapped__)  # wrapped in what walks trees of anything, which takes longer
        for operation, formula in flop_registry.items()
        if hasattr(formula, "__wrapped__")
    },
    ATTENTION: on_shapes(attention_flops),
    ATTENTION_BACKWARD: on_shapes(attention_backward_flops),
}
"""From an operation to the formula of its floating-point operations: torch's, and those of attention on a CPU."""


OUTPUTS = MetaOutputs(FORMULAS)
"""Shared by all traces, whose rows are alike."""


@dataclass
class StepTrace:
    """Result of a traced step, in bytes and floating-point operations.

    peaks: the bytes of each kind at the moment of the forward and of the backward pass at which they are most, the
        loss's own left out. before_loss: those when the loss is called. loss_dim: the width of its embeddings.
    flops: the operations of each phase, the loss's left out.

    Example:
        >>> StepTrace().total_flops
        0
    """

    peaks: dict[str, dict[str, int]] = field(default_factory=dict)
    before_loss: dict[str, int] = field(default_factory=dict)
    loss_dim: int = 0
    flops: dict[str, int] = field(default_factory=dict)

    @property
    def total_flops(self) -> int:
        """The operations of all phases."""
        return sum(self.flops.values())


class StepTracker(TorchDispatchMode):
    """A mode that counts the bytes of all living tensors by kind, their peaks, and floating-point operations.

    A tensor is counted from the operation that returns it until its memory is given back.

    Example:
        >>> with StepTracker() as tracker:
        ...     ones = torch.ones(256, device="meta")
        >>> tracker.live["activations"]
        1024
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = dict.fromkeys(KINDS, 0)
        self.flops: dict[str, int] = dict.fromkeys((FROZEN, FORWARD, BACKWARD, RECOMPUTED), 0)
        self.peaks: dict[str, dict[str, int]] = {}
        self.kind, self.in_backward, self.in_loss = ACTIVATIONS, False, False
        self.loss_flops = 0
        self._sum = 0
        self._highest = dict.fromkeys((False, True), -1)
        self._counted: dict[int, tuple[str, int]] = {}
        self._references: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value, flops, is_new = OUTPUTS(func, args, kwargs or {})
        if flops:
            self.add_flops(flops)
        count = self.count_new if is_new else self.count
        if isinstance(value, Tensor):
            count(value, self.kind)
        elif isinstance(value, (list, tuple)):
            for tensor in value:
                if isinstance(tensor, Tensor):
                    count(tensor, self.kind)
        if self._sum > self._highest[self.in_backward]:
            self.note()
        return value

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return that nothing keeps torch.compile out of this mode, which takes as long as an operation."""
        return False

    def add_flops(self, number: int) -> None:
        """Add operations to those of the phase that the step is in."""
        if self.in_loss:
            self.loss_flops += number
            return
        grad = torch.is_grad_enabled()  # in a backward pass only where something is computed again
        phase = (RECOMPUTED if grad else BACKWARD) if self.in_backward else (FORWARD if grad else FROZEN)
        self.flops[phase] += number

    def count(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's memory as of `kind`, unless it is counted already."""
        if tensor.untyped_storage()._cdata not in self._counted:
            self.count_new(tensor, kind)

    def count_new(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's memory, which is not counted yet, as of `kind`."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._counted[key] = kind, size
        self.add(kind, size)
        self._references[key] = weakref.ref(storage, lambda _: self.discount(key))

    def recount(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's memory as of `kind` from now on."""
        self.count(tensor, kind)
        key = tensor.untyped_storage()._cdata
        before, size = self._counted[key]
        self._counted[key] = kind, size
        self.add(before, -size)
        self.add(kind, size)

    def discount(self, key: int) -> None:
        """Take memory that is given back from its kind."""
        kind, size = self._counted.pop(key)
        del self._references[key]
        self.add(kind, -size)

    def add(self, kind: str, size: int) -> None:
        """Add bytes to those of `kind`, and to the sum of all kinds but the loss's."""
        self.live[kind] += size
        if kind != LOGITS:
            self._sum += size

    def kind_of(self, tensor: Tensor) -> str | None:
        """Return the kind that a tensor's memory is counted as; None where it is not counted."""
        return self._counted.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def note(self) -> None:
        """Remember what lives as the most of this pass, but for the loss."""
        self._highest[self.in_backward] = self._sum
        self.peaks[BACKWARD if self.in_backward else FORWARD] = {**self.live, LOGITS: 0}


def trace_step(model: Any, batch: Any, autocast: torch.dtype | None = None) -> StepTrace:
    """Return what a training step of a model on the meta device holds and computes, forward and backward.

    autocast: the dtype of mixed precision; None for the tensors' own. The model's parameters have no gradients after
    it, as before.
    """
    trace, tracker = StepTrace(), StepTracker()
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.count(tensor, WEIGHTS)
    for tensor in tensors_in(batch):
        tracker.count(tensor, BATCH)
    gradients = [
        parameter.register_post_accumulate_grad_hook(lambda one: tracker.recount(one.grad, GRADIENTS))
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    mode = MetaAutocast(autocast)
    try:
        with stored_counted(model, tracker), loss_counted(model, tracker, trace), tracker, mode:
            loss = model.training_step(batch, 0)
            mode.forget_weights()
            tracker.in_backward = True
            backward_in_modes(loss)
    finally:
        for handle in gradients:
            handle.remove()
        model.zero_grad()
    trace.peaks, trace.flops = tracker.peaks, tracker.flops
    return trace


def fill_caches(model: Any, batch: Any, autocast: torch.dtype | None = None) -> None:
    """Run a step forward alone, so that what a model computes once, and holds, is not counted with a traced step."""
    with torch.no_grad(), StepTracker(), MetaAutocast(autocast):
        model.training_step(batch, 0)


def backward_in_modes(loss: Tensor) -> None:
    """Run the backward pass with modes for functions on; torch's own `backward` is one of those, and turns them off."""
    run: Any = torch.autograd.graph._engine_run_backward  # type: ignore[attr-defined]
    run((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def trace_loss(loss: nn.Module, batch: Any) -> tuple[int, int]:
    """Return the bytes that a loss takes beside its embeddings, forward and backward, and its operations.

    batch: embeddings on the meta device, which have gradients.
    """
    tracker = StepTracker()
    with tracker, MetaAutocast(None):
        output = loss(batch).loss
        tracker.in_backward = True
        backward_in_modes(output)
    return max(sum(peak.values()) for peak in tracker.peaks.values()), sum(tracker.flops.values())


@contextmanager
def stored_counted(model: Any, tracker: StepTracker) -> Iterator[None]:
    """Count what `encode_frozen` returns as stored representations, but for what the batch brought along."""
    if not hasattr(model, "encode_frozen"):
        yield
        return
    encode_frozen = model.encode_frozen

    def encode_and_count(*arguments: Any) -> Any:
        inputs = encode_frozen(*arguments)
        for tensor in tensors_in((inputs.images.features, inputs.segments)):
            if tracker.kind_of(tensor) != BATCH:
                tracker.recount(tensor, STORED)
        return inputs

    with patch.object(model, "encode_frozen", encode_and_count):
        yield


@contextmanager
def loss_counted(model: Any, tracker: StepTracker, trace: StepTrace) -> Iterator[None]:
    """Count what the contrastive loss computes as logits, and note what lives when it is called."""
    loss = getattr(model, "loss", None) if hasattr(model, "gradient_cache") else None
    if loss is None:
        yield
        return

    def begin(_: Any, arguments: Any) -> None:
        trace.before_loss = {**tracker.live, LOGITS: 0}
        trace.loss_dim = arguments[0].queries.shape[1]
        tracker.kind, tracker.in_loss = LOGITS, True

    def end(*_: Any) -> None:
        tracker.kind, tracker.in_loss = ACTIVATIONS, False

    handles = [loss.register_forward_pre_hook(begin), loss.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of a value, inside tuples and batches too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, TensorDataclass):
        yield from tensors_in(tuple(vars(value).values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_in(item)
