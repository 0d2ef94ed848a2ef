from __future__ import annotations

import pytest
import torch
from torch import nn

from virtue_pl.engine.optimizer import Optimization
from virtue_pl.types import VirtueError


def model() -> nn.ModuleDict:
    parts = nn.ModuleDict({"fusion": nn.Linear(2, 2), "connector": nn.Linear(2, 2), "trunk": nn.Linear(2, 2)})
    parts["trunk"].requires_grad_(False)
    return parts


def test_groups_by_prefix_and_by_decay() -> None:
    groups = Optimization(1e-3, 0.1, 0, "constant", {"connector": 10.0}).parameter_groups(model())
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found == {(1e-3, 0.1): 1, (1e-3, 0.0): 1, (1e-2, 0.1): 1, (1e-2, 0.0): 1}


def test_groups_are_named_by_their_prefix_each_name_once() -> None:
    optimization = Optimization(1e-3, 0.1, 0, "constant", {"connector": 10.0, "connector.weight": 10.0, "base": 1.0})
    parts = nn.ModuleDict({**model(), "base": nn.Linear(2, 2)})
    rates = {group["name"]: group["lr"] for group in optimization.parameter_groups(parts)}
    expected = {"others": 1e-3, "others.no_decay": 1e-3, "base": 1e-3, "base.no_decay": 1e-3}
    assert rates == pytest.approx(expected | {"connector.weight": 1e-2, "connector.no_decay": 1e-2})
    named = {group["name"] for group in Optimization(1.0, 0.0, 0, "linear").parameter_groups(model())}
    assert named == {"base", "base.no_decay"}
    assert Optimization(1.0, 0.0, 0, "linear").configure(model(), 5)["lr_scheduler"]["name"] == "lr"


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_schedules_warm_up_and_end(schedule: str, half: float) -> None:
    optimization = Optimization(1.0, 0.0, 10, schedule)
    assert optimization.lr_factor(0, 110) == pytest.approx(0.1)
    assert optimization.lr_factor(60, 110) == pytest.approx(half)
    assert optimization.lr_factor(110, 110) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_the_scheduler_steps_with_the_optimizer() -> None:
    configured = Optimization(0.5, 0.0, 2, "linear").configure(model(), 4)
    assert configured["lr_scheduler"]["interval"] == "step"
    assert isinstance(configured["optimizer"], torch.optim.AdamW)
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("weight_decay", -0.1), ("warmup_steps", -3), ("lr", float("nan"))]
)
def test_a_number_below_zero_is_refused(option: str, value: float) -> None:
    settings = {"lr": 1.0, "weight_decay": 0.0, "warmup_steps": 0, option: value}
    with pytest.raises(VirtueError, match=rf"optimization\.{option} is {value}, expected 0 or more"):
        Optimization(schedule="linear", **settings)  # type: ignore[arg-type]
    with pytest.raises(VirtueError, match=r"optimization\.lr_multipliers: fusion is -1, expected 0 or more"):
        Optimization(1.0, 0.0, 0, "linear", {"fusion": -1})


def test_bounded_parameters_end_each_step_within_their_bounds() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.9))

        @torch.no_grad()
        def clamp_parameters(self) -> None:
            self.scale.clamp_(0, 1)

    root = nn.ModuleDict({"part": Scale()})
    optimizer = Optimization(0.5, 0.0, 0, "constant").configure(root, 10)["optimizer"]
    (-root["part"].scale).backward()
    optimizer.step()
    assert root["part"].scale.item() == 1.0


def test_a_prefix_that_nothing_answers_to_is_refused() -> None:
    with pytest.raises(VirtueError, match="no trainable parameter starts with 'conector'; there are connector, fusion"):
        Optimization(1.0, 0.0, 0, "linear", {"conector": 2.0}).parameter_groups(model())
    with pytest.raises(VirtueError, match=r"optimization\.schedule is 'step'"):
        Optimization(1.0, 0.0, 0, "step")
