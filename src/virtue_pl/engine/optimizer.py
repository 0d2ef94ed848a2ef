"""The optimizer and learning-rate schedule of a root module: one object, given in YAML or Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from virtue_pl.types import VirtueError


@runtime_checkable
class Bounded(Protocol):
    """An interface of modules with parameters that are bounded, such as a loss with a learned temperature.

    Example:
        >>> class Scale(nn.Module):
        ...     def clamp_parameters(self) -> None:
        ...         self.scale.data.clamp_(0, 1)
        >>> isinstance(Scale(), Bounded)
        True
    """

    def clamp_parameters(self) -> None:
        """Move parameters beyond their bounds back to them, in place; called after each step of the optimizer."""


def clamp_parameters(bounded: Sequence[Bounded]) -> None:
    """Move the modules' parameters beyond their bounds back to them, in place."""
    for part in bounded:
        part.clamp_parameters()


class StatedSchedule(LambdaLR):
    """A schedule of learning rates that goes on from a checkpoint's step with the rates that are stated now.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> before = StatedSchedule(optimizer, lambda step: 1 / (1 + step)).state_dict()
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
        >>> schedule = StatedSchedule(optimizer, lambda step: 1 / (1 + step))
        >>> schedule.load_state_dict({**before, "last_epoch": 2})
        >>> schedule.get_last_lr()
        [1.0]
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step of a state, and set each group's learning rate as it is stated for that step."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        lrs = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, base, lr in zip(self.optimizer.param_groups, self.base_lrs, lrs, strict=True):
            group["initial_lr"], group["lr"] = base, lr
        self._last_lr = lrs


def keep_settings(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer that loads a state take the moments alone, and stay with its own settings.

    Loading raises ValueError for parameter groups of other names, which moments of other parameters would go to.
    """
    moved = ("params", "lr", "initial_lr")
    own = [{key: value for key, value in group.items() if key not in moved} for group in optimizer.param_groups]

    def check_names(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        found = [group.get("name") for group in state["param_groups"]]
        expected = [group.get("name") for group in own]
        if None not in found and found != expected:
            raise ValueError(f"loaded state dict has other parameter groups: {found}, expected {expected}")

    def restore(optimizer: torch.optim.Optimizer) -> None:
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)

    optimizer.register_load_state_dict_pre_hook(check_names)
    optimizer.register_load_state_dict_post_hook(restore)


class Optimization:
    """AdamW with linear warm-up, then cosine or linear decay to zero over the run's steps.

    Args:
        lr: peak learning rate.
        weight_decay: of matrices; vectors (biases, norms) and scalars have none.
        warmup_steps: steps of linear warm-up.
        schedule: "cosine", "linear" or "constant" after the warm-up.
        lr_multipliers: a factor on `lr` for parameters whose name starts with the given prefix; the longest one counts.
        betas: AdamW's.

    Example:
        >>> optimization = Optimization(lr=1e-3, weight_decay=0.01, warmup_steps=10, schedule="cosine")
        >>> optimization.lr_factor(4, total_steps=100)
        0.5
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        schedule: str,
        lr_multipliers: Mapping[str, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if schedule not in ("cosine", "linear", "constant"):
            raise VirtueError(f"optimization.schedule is {schedule!r}, expected cosine, linear or constant")
        numbers = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        numbers |= {f"lr_multipliers: {prefix}": factor for prefix, factor in (lr_multipliers or {}).items()}
        for name, value in numbers.items():
            if not value >= 0:
                raise VirtueError(f"optimization.{name} is {value}, expected 0 or more")
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.lr_multipliers = dict(lr_multipliers or {})
        self.betas = betas

    def configure(self, module: nn.Module, total_steps: int) -> dict[str, Any]:
        """Return the result of `configure_optimizers` for the trainable parameters of `module`."""
        optimizer = torch.optim.AdamW(self.parameter_groups(module), lr=self.lr, betas=self.betas)
        bounded = [part for part in module.modules() if isinstance(part, Bounded)]
        optimizer.register_step_post_hook(lambda *_: clamp_parameters(bounded))
        scheduler = StatedSchedule(optimizer, lambda step: self.lr_factor(step, total_steps))
        keep_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Return the learning rate at `step`, as a share of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if self.schedule == "linear" else 1.0

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups, named, by prefix of `lr_multipliers` and by weight decay.

        A group is named by its prefix, "base" without one; that of parameters without weight decay ends in ".no_decay".
        `LearningRateMonitor` calls their curves lr/NAME.

        Raises VirtueError for a multiplier whose prefix no trainable parameter has.
        """
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for prefix in self.lr_multipliers:
            if not any(name.startswith(prefix) for name in trainable):
                tops = sorted({name.split(".")[0] for name in trainable})
                raise VirtueError(
                    f"optimization.lr_multipliers: no trainable parameter starts with {prefix!r}; there are"
                    f" {', '.join(tops)}"
                )
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in trainable.items():
            prefix = max((each for each in self.lr_multipliers if name.startswith(each)), key=len, default="")
            groups.setdefault((prefix, parameter.ndim > 1), []).append(parameter)
        others = "base" if "base" not in self.lr_multipliers else "others"
        return [
            {
                "params": parameters,
                "lr": self.lr * self.lr_multipliers.get(prefix, 1.0),
                "weight_decay": self.weight_decay if decays else 0.0,
                "name": (prefix or others) + ("" if decays else ".no_decay"),
            }
            for (prefix, decays), parameters in groups.items()
        ]
