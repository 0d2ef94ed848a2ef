from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import nn

from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import VirtueError


class Forgetful(VirtueModule):
    """A part whose constructor does not load anything, and freezes nothing."""

    def __init__(self, width: int = 3, weights: str | None = None, frozen: bool = False) -> None:
        super().__init__(weights=weights, frozen=frozen)
        self.linear = nn.Linear(2, width)


class Child(Forgetful):
    """A part with a layer more than its base."""

    def __init__(self, weights: str | None = None, frozen: bool = False) -> None:
        super().__init__(3, weights, frozen)
        self.more = nn.Linear(3, 3)


class Eager(VirtueModule):
    """A part that loads before it builds a head that no file has."""

    def __init__(self, weights: str | None = None, frozen: bool = False) -> None:
        super().__init__(weights=weights, frozen=frozen)
        self.linear = nn.Linear(2, 3)
        self.load_and_freeze()
        self.head = nn.Linear(3, 1)


class Heir(Child):
    """A part without a constructor of its own."""


class Keeper(Forgetful):
    """A root whose arguments are saved."""

    def __init__(self, width: int = 3, other: int = 5) -> None:
        super().__init__(width)
        self.save_hyperparameters()


class KeepersChild(Keeper):
    """A root whose base saves the arguments."""

    def __init__(self, width: int = 3, other: int = 5, third: int = 7) -> None:
        super().__init__(width, other)


PARTS = [Forgetful, Child, Eager, Heir]


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_is_frozen_whatever_its_constructor_forgets(part: type[VirtueModule]) -> None:
    model = part(frozen=True).train()
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in part().parameters())


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_loaded_whatever_its_constructor_forgets(part: type[VirtueModule], tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    tensors = {name: torch.full_like(tensor, 0.25) for name, tensor in part().state_dict().items()}
    save_file(tensors, file)
    loaded = part(weights=str(file)).state_dict()
    for name in tensors:
        assert torch.equal(loaded[name], tensors[name]) == (not name.startswith("head."))
    with pytest.raises(VirtueError, match=r"gone.safetensors is not there"):
        part(weights=str(tmp_path / "gone.safetensors"))


def test_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("virtue_pl.engine.module.load_weights", lambda *arguments: read.append(arguments))
    for part in PARTS:
        part(weights="file")
    assert len(read) == len(PARTS)


def test_a_class_shows_its_own_constructor() -> None:
    assert list(inspect.signature(Child).parameters) == ["weights", "frozen"]
    assert Child.__init__.__qualname__ == "Child.__init__"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Child, "part")
    assert parser.instantiate(parser.parse_args(["--part.frozen=true"])).part.frozen


def test_saved_arguments_are_those_of_the_class_and_of_its_base() -> None:
    assert dict(Keeper(4).hparams) == {"width": 4, "other": 5}
    assert dict(KeepersChild(4).hparams) == {"width": 4, "other": 5, "third": 7}
