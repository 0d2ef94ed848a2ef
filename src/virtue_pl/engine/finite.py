"""The check that stops a training before a gradient that is not finite reaches the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from virtue_pl.engine import collectives
from virtue_pl.types import VirtueError

NAMED_KEYS = 8
"""Number of samples that the error names."""


def check_gradients(named: Iterable[tuple[str, Tensor]], step: int, keys: Sequence[str]) -> None:
    """Raise VirtueError, on every rank, where a gradient is not finite.

    It reads one number from the device.

    Args:
        named: the trained parameters by name; those without a gradient are passed over.
        step: the optimizer step that is due, for the error.
        keys: of the samples that this rank read for it, for the error.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> (weight.sum() * float("nan")).backward()
        >>> try:
        ...     check_gradients([("weight", weight)], step=3, keys=["SCAR_mini/7"])
        ... except VirtueError as error:
        ...     print(str(error).partition(";")[0])
        step 3: the gradient of weight is not finite
    """
    gradients = {name: local(parameter.grad) for name, parameter in named if parameter.grad is not None}
    if not gradients:
        return
    with torch.no_grad():
        norms = torch._foreach_norm(list(gradients.values()), float("inf"))
        broken = ~torch.stack([norm.float() for norm in norms]).isfinite()
        device = broken.device
        if not collectives.all_reduce_max(int(broken.any()), device):
            return
    names = [name for name, found in zip(gradients, broken.tolist(), strict=True) if found]
    where = (
        f"the gradient of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        if names
        else ("a gradient of another rank")
    )
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    read = f"; rank {collectives.rank()} read {', '.join(keys[:NAMED_KEYS])}{more}" if keys else ""
    raise VirtueError(
        f"step {step}: {where} is not finite{read}; no weight was changed by it, and the last checkpoint stays: look at"
        " these samples with `virtue-pl doctor`, lower optimization.lr, or set trainer.precision to 32-true"
    )


def local(gradient: Tensor) -> Tensor:
    """Return this rank's part of a gradient that may be sharded."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
