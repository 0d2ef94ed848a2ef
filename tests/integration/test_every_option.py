"""Every number and switch of what is trained changes a training step.

`SUBJECTS` says of each class with which arguments, and in which root, it takes a step. Its options are those of its
constructor: another value of one must change the loss, a gradient or a weight that the optimizer has moved. Modules are
in the mode in which they are built, as Lightning leaves them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from fixtures import training_steps as steps
from fixtures.tiny_models import VISION_MODEL
from fixtures.tiny_vlms import TINY
from fixtures.training_steps import CANVAS, PARTNERS, SAM
from virtue_pl import adapters, backbones, engine, losses, models
from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.engine.module import VirtueModule
from virtue_pl.types import VirtueError

EXCEPTIONS = {
    "GradientCache.chunk_size": "the gradient is that of the whole batch, however it is cut",
    "GradientCache.chunk_tokens": "as chunk_size",
    "GradientCache.memory_share": "it chooses chunks, as chunk_size does",
}
"""Options that change nothing in a step, each with the reason: ten at most."""

Step = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A class, the step that its instance takes, its arguments, and further values of some options to try first."""

    cls: type
    step: Step
    arguments: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The value of each option that is a number, a switch, or several of these.

        Those without a default, such as a connector's `hidden_size`, come from the parts beside it.
        """
        hints = get_type_hints(self.cls.__init__)  # type: ignore[misc]
        given = {name: one.default for name, one in inspect.signature(self.cls).parameters.items()} | dict(
            self.arguments
        )
        return {
            name: value
            for name, value in given.items()
            if value is not inspect.Parameter.empty and is_numeric(str(hints[name]))
        }

    def take(self, **changes: Any) -> dict[str, Tensor]:
        """What a step gives, with some arguments changed."""
        torch.manual_seed(0)
        return self.step(self.cls, **deepcopy({**self.arguments, **changes}))


def is_numeric(hint: str) -> bool:
    names = hint.replace("<class ", "").replace(">", "").replace("'", "").replace("collections.abc.", "")
    names_in_hint = {word.strip() for word in names.replace("[", ",").replace("]", ",").replace("|", ",").split(",")}
    return bool(names_in_hint & {"int", "float", "bool"}) and not names_in_hint & {"Callable", "virtue_pl"}


def other_values(value: Any) -> Iterator[Any]:
    """Values to try in place of another; a constructor may refuse some of them."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (
            number for number in (value + 1, 2 * value, value // 2, 4 * value, value // 4, 3, 1) if number != value
        )
    elif isinstance(value, float):
        yield from (value + 0.25, value / 2, 2 * value)
    elif isinstance(value, Mapping):
        for name, share in value.items():
            yield {**value, name: share + 2.0}
    elif isinstance(value, tuple | list):
        for position, number in enumerate(value):
            for other in other_values(number):
                yield type(value)([*value[:position], other, *value[position + 1 :]])


INFONCE = {"temperature": 0.2, "learn_temperature": True, "own_negatives_weight": 0.5}
WORDS = {"max_tokens": (6,)}
SUBJECTS = [
    *(Subject(getattr(backbones, path.rpartition(".")[2]), steps.of_vlm, {}, WORDS) for path in TINY),
    Subject(
        backbones.TimmTextBackbone,
        steps.of_vlm,
        {"vision_model": VISION_MODEL, "image_size": CANVAS, "grid_size": 2},
        WORDS,
    ),
    Subject(backbones.ClipBackbone, steps.of_vlm, {"grid_size": 2}, {"max_tokens": (12,)}),
    Subject(losses.InfoNCELoss, steps.of_loss, INFONCE, {"adapter_dim": (8,), "margin": (-0.5, 0.0)}),
    Subject(
        losses.SigmoidLoss,
        steps.of_loss,
        {"temperature": 0.2, "bias": -1.0},
        {"adapter_dim": (8,), "margin": (-0.5, 0.0)},
    ),
    Subject(
        losses.MatryoshkaLoss,
        steps.of_loss,
        {"loss": losses.InfoNCELoss(**INFONCE), "dims": [8, 4]},
        {"dim_weights": ([1.0, 3.0],)},
    ),
    Subject(adapters.LoRA, steps.of_adapter, {"rank": 2, "alpha": 2}),
    *(
        Subject(getattr(backbones, f"{kind}PromptEncoder"), steps.of_segmentation, {**SAM, **PARTNERS[kind][2]})
        for kind in PARTNERS
    ),
    *(
        Subject(getattr(backbones, f"{kind}Backbone"), steps.of_segmentation, {**SAM, **PARTNERS[kind][3]})
        for kind in PARTNERS
    ),
    Subject(models.ConvolutionConnector, steps.of_connector),
    Subject(models.MaskConnector, steps.of_connector, {"summary": True}),
    Subject(models.RoiConnector, steps.of_connector, {"summary": True}),
    Subject(models.VLMFusionHead, steps.of_head, {"train_modes": {"none": 1.0, "blind": 1.0}}),
    Subject(models.Virtue, steps.of_virtue, {"train_modes": {"box": 1.0, "point": 1.0}}),
    Subject(models.SegmentationExtractor, steps.of_extractor, {"prompt_modes": {"box": 1.0, "point": 1.0}}),
    Subject(models.VisualPromptEncoder, steps.of_prompt_encoder_alone, {"prompt_modes": {"box": 1.0, "point": 1.0}}),
    Subject(
        engine.Optimization,
        steps.of_optimizer,
        {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 2, "lr_multipliers": {"weight": 2.0}},
        {"betas": ((0.5, 0.999), (0.9, 0.5))},
    ),
    Subject(engine.GradientCache, steps.of_cache, {"chunk_size": 2}, {"chunk_tokens": (40,)}),
]


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the tiny models are, which `steps.language_model` names."""
    steps.FOLDERS["find"] = lambda name: tmp_path_factory.mktemp("model") / name
    yield
    steps.FOLDERS.clear()
    steps.language_model.cache_clear()


def changed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether a number differs by more than rounding does, or one of them has a gradient that the other has not."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return True
    norm = max(float(tensor.norm()) for tensor in one.values())
    return any((one[name] - other[name]).norm() > 1e-4 * one[name].norm() + 1e-6 * norm for name in one)


@cache
def base_of(number: int) -> dict[str, Tensor]:
    subject = SUBJECTS[number]
    return subject.take()


REFUSALS = (VirtueError, ValueError, RuntimeError, AssertionError, IndexError, TypeError, ZeroDivisionError)
"""What a constructor or a step raises for a value of an option that goes with no other."""

OPTIONS = [
    pytest.param(number, option, id=f"{subject.cls.__name__}.{option}")
    for number, subject in enumerate(SUBJECTS)
    for option in subject.options
]


@pytest.mark.parametrize(("number", "option"), OPTIONS)
def test_an_option_changes_something(number: int, option: str) -> None:
    subject = SUBJECTS[number]
    tried, base = [], base_of(number)
    for value in [*subject.others.get(option, ()), *other_values(subject.options[option])]:
        try:
            found = subject.take(**{option: value})
        except REFUSALS as error:
            if isinstance(value, bool) and isinstance(error, VirtueError) and option in str(error):
                return  # the step cannot be taken so, and says it
            tried.append((value, error))
            continue
        if f"{subject.cls.__name__}.{option}" in EXCEPTIONS:
            assert not changed(base, found), "it is no exception any more"
        elif changed(base, found):
            return
        tried.append((value, None))
    assert f"{subject.cls.__name__}.{option}" in EXCEPTIONS, f"{option} changes nothing: {tried}"


def test_a_step_is_the_same_again() -> None:
    """What is seen to change is the option, not chance."""
    for number, subject in enumerate(SUBJECTS):
        assert not changed(base_of(number), subject.take()), subject.cls


def test_whatever_is_trained_is_a_subject() -> None:
    faces = [
        import_module(f"virtue_pl.{package}") for package in ("backbones", "models", "losses", "adapters", "engine")
    ]
    kinds = (
        VLMBackbone,
        SegmentationBackbone,
        PromptEncoder,
        models.Connector,
        VirtueModule,
        engine.Optimization,
        adapters.LoRA,
    )
    shown = {getattr(face, name) for face in faces for name in face.__all__}
    trained = {cls for cls in shown if inspect.isclass(cls) and issubclass(cls, kinds) and not is_abstract(cls)}
    bases = {base for subject in SUBJECTS for base in subject.cls.__mro__[1:]}
    assert trained - bases <= {subject.cls for subject in SUBJECTS}


def is_abstract(cls: type) -> bool:
    """Also of a class whose metaclass does not say it."""
    return any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls))


def test_exceptions_are_few_and_are_options() -> None:
    names = {f"{SUBJECTS[number].cls.__name__}.{option}" for number, option in (one.values for one in OPTIONS)}
    assert len(EXCEPTIONS) <= 10 and EXCEPTIONS.keys() <= names and all(EXCEPTIONS.values())
