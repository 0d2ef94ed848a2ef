"""A model outside of a run: what to build, and the tensors to fill it with, whatever layout they were read from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from virtue_pl.backbones.pretrained import weights_left_out
from virtue_pl.checkpoints.class_paths import explain_missing, import_class
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.types import VirtueError

OWN_CLASSES = "virtue_pl."
IN_FOLDER = "./"
"""What a path inside a release's folder begins with, as `./language_model`."""
PLACES = ("prompt_encoder.", "connector.")
"""Of what says where something is, of which the names begin so: in the 8 bits of bfloat16 a coordinate is off by
pixels.
"""
Spec = Mapping[str, Any]
"""{class_path, init_args}, as a config states a part."""


@dataclass(frozen=True)
class CheckpointSpec:
    """A model to be built.

    spec: class_path and init_args of the model; a value "./NAME" is a folder of `folder`.
    tensors: all that the model holds, by the names of its `state_dict()`.
    left_out: what the published layout holds beside, by its own names: the head that predicts words, SAM 2's memory.
    named: for messages, the name by which a tensor stands in the files.
    """

    folder: Path
    spec: Spec
    tensors: dict[str, Tensor]
    left_out: dict[str, Tensor] = field(default_factory=dict)
    named: Callable[[str], str] = str
    license: str | None = None

    def build(self, dtype: torch.dtype | None = torch.float32, allow_classes: Sequence[str] = ()) -> EmbeddingModel:
        """The model in eval mode. dtype: of its tensors (`fill`), or None for what the files hold.

        Raises VirtueError for a tensor that is missing, left over or of another shape.
        """
        with weights_left_out():
            model = instantiate(self.spec, self.folder, (OWN_CLASSES, *allow_classes))
        if not isinstance(model, EmbeddingModel):
            raise VirtueError(
                f"{self.folder}: its model is a {type(model).__name__}, expected one that embeds (Virtue,"
                " VLMFusionHead)"
            )
        check_tensors(model.state_dict(), self)
        fill(model, self.tensors, dtype)
        return model.eval()


def check_tensors(wanted: Mapping[str, Tensor], release: CheckpointSpec) -> None:
    """Raises VirtueError where the model and the files differ in a name or in a shape."""
    missing, surplus = sorted(wanted.keys() - release.tensors.keys()), sorted(release.tensors.keys() - wanted.keys())
    for names, problem in ((missing, "lacks"), (surplus, "has a surplus of")):
        if names:
            count = f"{len(names)} tensor{'s' * (len(names) > 1)}"
            expected = f"expected exactly the {len(wanted)} of the model that its config describes"
            raise VirtueError(
                f"{release.folder} {problem} {count}, e.g. {release.named(names[0])}: {expected}; download it again, or"
                " name another folder"
            )
    for name, tensor in wanted.items():
        found = release.tensors[name].shape
        if found != tensor.shape:
            raise VirtueError(
                f"{release.folder}: {release.named(name)} is {list(found)}, expected {list(tensor.shape)} by the sizes"
                " in its config: they are of two models"
            )


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Every tensor of the model from `tensors`, floats as `dtype`, integers as they are.

    In float32 stay the prompt encoder, the connector, and buffers that no file holds, as the frequencies of rotary
    positions.
    """
    if dtype is not None:
        for name, held in model.state_dict(keep_vars=True).items():
            if held.is_floating_point():
                held.data = held.data.to(torch.float32 if name.startswith(PLACES) else dtype)
    model.load_state_dict(tensors, assign=dtype is None)


def instantiate(spec: Any, folder: Path, allowed: Sequence[str]) -> Any:
    """The object that a spec describes, and those within it. Raises VirtueError for a class that is not allowed.

    Only a mapping with a class_path is an object; a string stays a string, so that a release's folder can call nothing
    else.
    """
    if isinstance(spec, Mapping) and "class_path" in spec:
        surplus = spec.keys() - {"class_path", "init_args"}
        if surplus:
            raise VirtueError(
                f"{folder}: {spec['class_path']} is described with {min(surplus)!r}, expected class_path and init_args"
                " alone"
            )
        return construct(known_class(spec["class_path"], folder, allowed), spec.get("init_args") or {}, folder, allowed)
    if isinstance(spec, Mapping):
        return {name: instantiate(value, folder, allowed) for name, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [instantiate(value, folder, allowed) for value in spec]
    return str(inside(folder, spec)) if isinstance(spec, str) and spec.startswith(IN_FOLDER) else spec


def construct(cls: type, init_args: Spec, folder: Path, allowed: Sequence[str]) -> Any:
    """An instance; what the constructor takes as a factory (`Callable[...]`) is given as the class with its other
    arguments.
    """
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]  # of the class, not of an instance
    unknown = init_args.keys() - inspect.signature(cls).parameters.keys()
    if unknown:
        raise VirtueError(
            f"{folder}: {cls.__name__} has no argument {min(unknown)!r}, expected those of this version of virtue-pl"
        )
    values = {
        name: factory(value, folder, allowed) if is_factory(hints.get(name)) else instantiate(value, folder, allowed)
        for name, value in init_args.items()
    }
    try:
        return cls(**values)
    except TypeError as error:
        raise VirtueError(f"{folder}: {cls.__name__} cannot be built of {sorted(values)}: {error}") from error


def is_factory(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is Callable or str(hint).startswith("collections.abc.Callable[")


def factory(spec: Spec, folder: Path, allowed: Sequence[str]) -> Callable[..., Any]:
    cls = known_class(spec["class_path"], folder, allowed)
    return partial(
        cls, **{name: instantiate(value, folder, allowed) for name, value in (spec.get("init_args") or {}).items()}
    )


def known_class(path: str, folder: Path, allowed: Sequence[str]) -> type:
    """The class of that name. Raises VirtueError, before anything is imported, where it lies outside of what is
    allowed.
    """
    module = str(path).rpartition(".")[0]
    if not path.startswith(tuple(allowed)):
        raise VirtueError(
            f"{folder} names the class {path}, expected one of virtue_pl: where you trust it, allow it by"
            f" `--allow-classes {module or path}`"
        )
    found = import_class(path)
    if found is None:
        raise VirtueError(f"{folder}: {explain_missing(path)}")
    if not inspect.isclass(found) or not f"{found.__module__}.".startswith(tuple(allowed)):
        raise VirtueError(f"{folder}: {path} is no class of virtue_pl, expected one that it defines itself")
    return found


def inside(folder: Path, name: str) -> Path:
    """A path in the folder. Raises VirtueError for one that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise VirtueError(f"{folder} names {name!r}, expected a place inside the folder")
    return path
