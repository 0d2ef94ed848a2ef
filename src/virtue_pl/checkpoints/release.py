"""`CheckpointSpec`: a model's description and its tensors, whatever layout they were read from, and how it is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.checkpoints.class_paths import classes_in, explain_missing, import_class
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.types import VirtueError

OWN_CLASSES = "virtue_pl."
IN_FOLDER = "./"
"""Beginning of a path inside a checkpoint's folder, as `./language_model`."""
FLOAT32_PREFIXES = ("prompt_encoder.", "connector.")
"""Beginnings of the names of tensors that stay in float32, since they encode coordinates: in the 8 bits of bfloat16 a
coordinate is off by pixels.
"""
Spec = Mapping[str, Any]
"""Mapping with class_path and init_args, as a config states a part."""


@dataclass(frozen=True)
class CheckpointSpec:
    """A model that can be built: the description of its parts, and all its tensors.

    folder: what messages name, and what paths in the spec are relative to.
    spec: class_path and init_args of the model; a value "./NAME" is a folder of `folder`.
    tensors: all that the model holds, by the names of its `state_dict()`.
    left_out: further tensors of the published layout, by its own names: the head that predicts words, SAM 2's memory.
    name_in_files: returns a tensor's name in the files, for messages.
    license: the licence that the folder's model card states.

    Example:
        >>> spec = {"class_path": "virtue_pl.models.Virtue", "init_args": {}}
        >>> CheckpointSpec(Path("runs/mini"), spec, tensors={}).spec["class_path"]
        'virtue_pl.models.Virtue'
    """

    folder: Path
    spec: Spec
    tensors: dict[str, Tensor]
    left_out: dict[str, Tensor] = field(default_factory=dict)
    name_in_files: Callable[[str], str] = str
    license: str | None = None

    def build(self, dtype: torch.dtype | None = torch.float32, allow_classes: Sequence[str] = ()) -> EmbeddingModel:
        """Build the model and return it in eval mode. dtype: of its tensors (`fill`), or None for that of the files.

        Raises VirtueError for a tensor that is missing, left over or of another shape.
        """
        with skip_weights():
            model = instantiate(self.spec, self.folder, (OWN_CLASSES, *allow_classes))
        require_class(type(model), self.folder)
        check_tensors(model.state_dict(), self)
        fill(model, self.tensors, dtype)
        return model.eval()


def require_class(cls: type, folder: Path) -> None:
    """Raise VirtueError for the class of a folder's model that does not embed."""
    if not issubclass(cls, EmbeddingModel):
        raise VirtueError(f"{folder}: its model is a {cls.__name__}, expected one that embeds (Virtue, VLMFusionHead)")


def check_tensors(wanted: Mapping[str, Tensor], checkpoint: CheckpointSpec) -> None:
    """Raise VirtueError where the model and the files differ in a name or in a shape."""
    missing, surplus = (
        sorted(wanted.keys() - checkpoint.tensors.keys()),
        sorted(checkpoint.tensors.keys() - wanted.keys()),
    )
    for names, problem in ((missing, "lacks"), (surplus, "has a surplus of")):
        if names:
            count = f"{len(names)} tensor{'s' * (len(names) > 1)}"
            expected = f"expected exactly the {len(wanted)} of the model that its config describes"
            raise VirtueError(
                f"{checkpoint.folder} {problem} {count}, e.g. {checkpoint.name_in_files(names[0])}: {expected};"
                " download it again, or name another folder"
            )
    for name, tensor in wanted.items():
        found = checkpoint.tensors[name].shape
        if found != tensor.shape:
            raise VirtueError(
                f"{checkpoint.folder}: {checkpoint.name_in_files(name)} is {list(found)}, expected {list(tensor.shape)}"
                " by the sizes in its config: they are of two models"
            )


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Load every tensor of the model from `tensors`: floats are cast to `dtype`, integers keep their type.

    The prompt encoder, the connector and buffers that no file holds (the frequencies of rotary positions) stay in
    float32.
    """
    if dtype is not None:
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if name.startswith(FLOAT32_PREFIXES) else dtype)
    model.load_state_dict(tensors, assign=dtype is None)


def instantiate(spec: Any, folder: Path, allowed: Sequence[str], hint: Any = None) -> Any:
    """Build the object that a spec describes, and those within it. Raises VirtueError for a class that is not allowed.

    Only a mapping with a class_path is an object; a string stays a string, so that a folder can call nothing else.
    hint: the type of the argument that takes the object, for the suggestion where its class does not exist.
    """
    if isinstance(spec, Mapping) and "class_path" in spec:
        surplus = spec.keys() - {"class_path", "init_args"}
        if surplus:
            raise VirtueError(
                f"{folder}: {spec['class_path']} is described with {min(surplus)!r}, expected class_path and init_args"
                " alone"
            )
        cls = find_class(spec["class_path"], folder, allowed, hint)
        return construct(cls, spec.get("init_args") or {}, folder, allowed)
    if isinstance(spec, Mapping):
        return {name: instantiate(value, folder, allowed, hint) for name, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [instantiate(value, folder, allowed, hint) for value in spec]
    return str(path_inside(folder, spec)) if isinstance(spec, str) and spec.startswith(IN_FOLDER) else spec


def construct(cls: type, init_args: Spec, folder: Path, allowed: Sequence[str]) -> Any:
    """Return an instance of the class.

    An argument that is a factory (`Callable[...]`) becomes the class that is named, with the arguments that are stated.
    A class whose arguments once meant something else translates them by `stored_arguments`.
    """
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]  # of the class, not of an instance
    unknown = init_args.keys() - inspect.signature(cls).parameters.keys()
    if unknown:
        raise VirtueError(
            f"{folder}: {cls.__name__} has no argument {min(unknown)!r}, expected those of this version of virtue-pl"
        )
    values = {
        name: (factory if is_factory(hints.get(name)) else instantiate)(value, folder, allowed, hints.get(name))
        for name, value in init_args.items()
    }
    of_any_version = getattr(cls, "stored_arguments", dict)
    try:
        return cls(**of_any_version(values))
    except TypeError as error:
        raise VirtueError(f"{folder}: {cls.__name__} cannot be built of {sorted(values)}: {error}") from error


def is_factory(hint: Any) -> bool:
    """Return whether a type hint is `Callable[...]`."""
    return getattr(hint, "__origin__", None) is Callable or str(hint).startswith("collections.abc.Callable[")


def factory(spec: Spec, folder: Path, allowed: Sequence[str], hint: Any = None) -> Callable[..., Any]:
    """Return the class that a spec names, with the arguments that the spec states already given."""
    cls = find_class(spec["class_path"], folder, allowed, hint)
    return partial(
        cls, **{name: instantiate(value, folder, allowed) for name, value in (spec.get("init_args") or {}).items()}
    )


def find_class(path: str, folder: Path, allowed: Sequence[str], hint: Any = None) -> type:
    """Return the class at a dotted path.

    Raises VirtueError, before anything is imported, for a path outside of what is allowed.
    """
    module = str(path).rpartition(".")[0]
    if not path.startswith(tuple(allowed)):
        raise VirtueError(
            f"{folder} names the class {path}, expected one of virtue_pl: where you trust it, allow it by"
            f" `--allow-classes {module or path}`"
        )
    found = import_class(path)
    if found is None:
        raise VirtueError(f"{folder}: {explain_missing(path, classes_in(hint))}")
    if not inspect.isclass(found) or not f"{found.__module__}.".startswith(tuple(allowed)):
        raise VirtueError(f"{folder}: {path} is no class of virtue_pl, expected one that it defines itself")
    return found


def path_inside(folder: Path, name: str) -> Path:
    """Return a path in the folder. Raises VirtueError for one that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise VirtueError(f"{folder} names {name!r}, expected a path inside the folder")
    return path
