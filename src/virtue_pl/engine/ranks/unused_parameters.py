"""Parameters that a step does not use: on several ranks they take part in it, and stay as they are if none uses them.

In one process they have no gradient, and the optimizer passes them over: it neither decays nor counts them. DDP waits
for the gradient of each parameter on each rank, and has zeros for those that nobody used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from virtue_pl.engine.ranks.collectives import merge_flags


class UnusedParameters:
    """The trained parameters of a module that none of its ranks has used since the last step of the optimizer.

    Which ones this rank has used is noted while their gradients are added, so that no graph is searched, and no device
    is waited for.

    Example:
        >>> layer, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> unused = UnusedParameters()
        >>> unused.watch([*layer.parameters(), *other.parameters()])
        >>> unused.join(layer(torch.ones(1, 2)).sum()).backward()
        >>> other.weight.grad = torch.zeros(1, 2)  # as DDP does
        >>> unused.drop_gradients()
        >>> other.weight.grad is None, layer.weight.grad
        (True, tensor([[1., 1.]]))
    """

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.used: list[bool] = []
        self.handles: list[RemovableHandle] = []

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Note from now on which of these parameters are used."""
        self.release()
        self.parameters = list(parameters)
        self.used = [False] * len(self.parameters)
        for number, parameter in enumerate(self.parameters):
            self.handles.append(parameter.register_post_accumulate_grad_hook(self.note(number)))

    def note(self, number: int) -> Any:
        """Return the hook of a parameter, which is called at each visit, with a gradient or without."""

        def hook(parameter: Tensor) -> None:
            self.used[number] |= parameter.grad is not None

        return hook

    def join(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the loss, whose backward pass visits every watched parameter, and gives those it does not use nothing.

        DDP's own hooks are called at each visit, so that it waits for none.
        """
        joined: Tensor = VisitParameters.apply(loss, *self.parameters) if self.parameters else loss
        return joined

    def drop_gradients(self) -> None:
        """Set the gradients to None that are of parameters which no rank has used. Every rank must call it."""
        if not self.parameters:
            return
        for parameter, used in zip(self.parameters, merge_flags(self.used), strict=True):
            if not used:
                parameter.grad = None
        self.used = [False] * len(self.parameters)

    def release(self) -> None:
        """Watch no parameter any more."""
        for handle in self.handles:
            handle.remove()
        self.parameters, self.used, self.handles = [], [], []


class VisitParameters(torch.autograd.Function):
    """The identity of its first argument, whose backward pass goes on to all others, with no gradient.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> VisitParameters.apply(torch.tensor(3.0), weight).backward()
        >>> weight.grad is None
        True
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        """Return the first argument."""
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of the first argument, and none of the others."""
        return (gradient, *[None] * ctx.count)
