"""The check that stops a training before a gradient that is not finite reaches the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from virtue_pl.engine.ranks import collectives
from virtue_pl.types import VirtueError

NAMED_KEYS = 8
"""Number of samples that the error names."""
NAMED_RANKS = 8
"""Number of ranks of which it does."""
SMALLEST_SCALE = 2.0**-10
"""Scale of float16's gradients below which it is not their size that is wrong: it begins at 65,536, and is halved with
each step that is passed over.
"""


class ReadBatches:
    """The batches that were read for the next optimizer step: several, where gradients are accumulated.

    Example:
        >>> batches = ReadBatches()
        >>> for keys, loss in ((("a", "b"), 1.0), (("c",), float("nan"))):
        ...     batches.begin(keys)
        ...     batches.end(torch.tensor(loss))
        >>> batches.begin(("d",))
        >>> batches.suspects()
        ['c', 'd', 'a', 'b']
    """

    def __init__(self) -> None:
        self.keys: list[tuple[str, ...]] = []
        self.losses: list[Tensor] = []

    def begin(self, keys: tuple[str, ...]) -> None:
        """Note the keys of the samples of a batch."""
        self.keys.append(keys)

    def end(self, outputs: Any) -> None:
        """Note the loss of the batch that was begun; what is no loss is none. Nothing is read from the device."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if len(self.losses) < len(self.keys):
            self.losses.append(loss.detach() if isinstance(loss, Tensor) else torch.zeros(()))

    def clear(self) -> None:
        """Forget all batches, once their gradient is used."""
        self.keys, self.losses = [], []

    def has_broken_loss(self) -> bool:
        """Return whether a loss is not finite. It is read from the device."""
        return any(bool((~loss.isfinite()).any()) for loss in self.losses)

    def suspects(self) -> list[str]:
        """Return the keys of all samples: first those of batches whose loss is not finite, then those of the last."""
        broken = [bool((~loss.isfinite()).any()) for loss in self.losses]
        last = len(self.keys) - 1
        order = sorted(range(len(self.keys)), key=lambda number: (not any(broken[number : number + 1]), number != last))
        return [key for number in order for key in self.keys[number]]


def check_gradients(named: Iterable[tuple[str, Tensor]], step: int, batches: ReadBatches) -> None:
    """Raise VirtueError, on every rank, where a gradient is not finite.

    It reads one number from the device. All ranks' samples are named on each of them.

    Args:
        named: the trained parameters by name; those without a gradient are passed over.
        step: the optimizer step that is due, for the error.
        batches: those that this rank read for it, for the error.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> (weight.sum() * float("nan")).backward()
        >>> try:
        ...     check_gradients([("weight", weight)], step=3, batches=ReadBatches())
        ... except VirtueError as error:
        ...     print(str(error).partition(";")[0])
        step 3: the gradient of weight is not finite
    """
    gradients = {name: local(parameter.grad) for name, parameter in named if parameter.grad is not None}
    broken = torch.zeros(0, dtype=torch.bool)
    if gradients:
        with torch.no_grad():
            norms = torch._foreach_norm(list(gradients.values()), float("inf"))
            broken = ~torch.stack([norm.float() for norm in norms]).isfinite()
    if not collectives.merge_flags([bool(broken.any())])[0]:
        return
    names = [name for name, found in zip(gradients, broken.tolist(), strict=True) if found]
    where = (
        f"the gradient of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        if names
        else ("a gradient of another rank")
    )
    read = "".join(f"; {line}" for line in describe_ranks(batches))
    raise VirtueError(
        f"step {step}: {where} is not finite{read}; no weight was changed by it, and the last checkpoint stays: look at"
        " these samples with `virtue-pl doctor`, lower optimization.lr, or set trainer.precision to 32-true"
    )


def describe_ranks(batches: ReadBatches) -> list[str]:
    """Return what each rank read, in words: those first whose loss is not finite. Every rank must call it."""
    found = collectives.gather_objects((not batches.has_broken_loss(), batches.suspects()))
    ranks = sorted((fine, rank, keys) for rank, (fine, keys) in enumerate(found) if keys)
    lines = [f"rank {rank} read {name_some(keys)}" for _, rank, keys in ranks]
    return lines[:NAMED_RANKS] + ([f"{len(lines) - NAMED_RANKS} more ranks"] if len(lines) > NAMED_RANKS else [])


def name_some(keys: list[str]) -> str:
    """Return the first keys, and how many more there are."""
    return ", ".join(keys[:NAMED_KEYS]) + (f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else "")


def check_scale(scale: float, step: int, batches: ReadBatches) -> None:
    """Raise VirtueError where float16's scaler has passed over so many steps that none can come to be of use.

    Args:
        scale: of the scaler, before this step.
        step: the optimizer step that is due, for the error.
        batches: those that this rank read for it, for the error.

    Example:
        >>> check_scale(65_536.0, step=3, batches=ReadBatches())
    """
    if scale >= SMALLEST_SCALE:
        return
    raise VirtueError(
        f"step {step}: no gradient is finite, however small the scale ({scale:g}); rank {collectives.rank()} read"
        f" {', '.join(batches.suspects()[:NAMED_KEYS])}; the last steps changed no weight: set trainer.precision to"
        " bf16-mixed or 32-true, or lower optimization.lr"
    )


def local(gradient: Tensor) -> Tensor:
    """Return this rank's part of a gradient that may be sharded."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
