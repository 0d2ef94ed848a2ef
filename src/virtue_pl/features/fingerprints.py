"""Fingerprints of networks and of what prepares their inputs: all that decides their numbers, found by looking at them.

A network is described as it is built: the class and the plain attributes of every module, processor and config object
in it, and all tensors. No recorded arguments are trusted, so that a model built in Python, from YAML, from an exported
folder or from a checkpoint is keyed alike. A class leaves out what does not change its outputs by an attribute
`not_in_fingerprint`, a frozenset of attributes' names, which holds for its subclasses too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import cache, partial
from importlib.metadata import packages_distributions
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from virtue_pl.types.fingerprints import FORMAT, LIBRARIES, hash_values, library_version, library_versions

IGNORE = "not_in_fingerprint"
MODULE_INTERNALS = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
"""A module's own attributes that hold no setting: hooks and the like, and whether it trains."""
CONTENTS = ("_parameters", "_buffers", "_modules")
"""A module's attributes that hold its tensors and modules by name."""
LOCATIONS = frozenset(
    {
        *(
            "name_or_path",
            "_name_or_path",
            "_commit_hash",
            "init_inputs",
            "vocab_file",
            "tokenizer_file",
            "merges_file",
        ),
        *("local_files_only", "force_download", "cache_dir", "token", "revision", "subfolder"),
    }
)
"""Names under which transformers' objects say where they were read from, and how they were fetched."""
SAVED_BY = frozenset({"transformers_version", "architectures", "dtype", "torch_dtype", "gradient_checkpointing"})
"""Names under which they say by what they were saved, in which type (tensors have their own), and how they train."""
LOADING = frozenset({"_is_hf_initialized", "_use_kernels", "_weight_conversions", "_output_capturing_hooks_installed"})
"""Names under which they note, on modules of any class, how weights were loaded and whether they have been run."""
CALL_SETTINGS = ("truncation", "padding")
"""Settings of a fast tokenizer that each call sets anew."""
VERSIONED = frozenset(
    {"virtue_pl", "torch", "torchvision", "transformers", "tokenizers", "timm", "peft", "segment_anything", "PIL"}
)
"""Packages whose version, or `FORMAT`, is in every fingerprint anyway."""
WITHOUT_NUMBERS = frozenset({"lightning", "lightning_fabric", "huggingface_hub", "numpy", "safetensors", "jaxtyping"})
"""Packages that networks are derived from or hold objects of, and that compute no output."""


def fingerprint_of(*parts: object) -> str:
    """Return a hash of all that the outputs of networks, and of what prepares their inputs, depend on.

    It has their settings and tensors, the versions of the libraries, and `FORMAT`. Device, folder and process do not
    change it.

    Args:
        parts: modules, processors, input formatters, config objects, or plain values; the order matters.

    Example:
        >>> fingerprint_of(nn.Dropout(0.1)) == fingerprint_of(nn.Dropout(0.2))
        False
    """
    return hash_values(FORMAT, library_versions(), [*map(Description(), parts)])


class Description:
    """A function from any object to plain values that are equal for objects that compute equal numbers.

    An object is looked at once, however many others hold it.

    Example:
        >>> Description()({"size": (2, 3), "scale": 1.0})
        {'map': [['scale', 1], ['size', [2, 3]]]}
    """

    def __init__(self) -> None:
        self._described: dict[int, tuple[object, Any]] = {}
        """Descriptions by the object's identity, beside the object, which so stays alive."""

    def __call__(self, value: object) -> Any:
        """Return the description of a value: itself where it is plain, or else a hash of its parts."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return int(value) if value.is_integer() else {"float": value.hex()}
        if id(value) not in self._described:
            self._described[id(value)] = value, {"cycle": type(value).__qualname__}
            self._described[id(value)] = value, self.parts(value)
        return self._described[id(value)][1]

    def parts(self, value: object) -> Any:
        """Return the description of a value that is not plain, from those of its parts."""
        if isinstance(value, Mapping):
            return {"map": self.entries(value)}
        if isinstance(value, list | tuple):
            return [self(each) for each in value]
        if isinstance(value, AbstractSet):
            return {"set": sorted((self(each) for each in value), key=canonical)}
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return {"tensor": tensor_digest(torch.as_tensor(value))}
        if isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType | partial | ModuleType):
            return self.code(value)
        return self.object_parts(value)

    def entries(self, value: Mapping[Any, Any]) -> list[Any]:
        """Return a mapping's entries in the order of their keys, without those that only say where it was read from."""
        named = ((key, value[key]) for key in sorted(value, key=str) if key not in LOCATIONS)
        return [[self(key), self(each)] for key, each in named]

    def code(self, value: Any) -> Any:
        """Return the description of a class, a function or a module."""
        if isinstance(value, partial):
            return {"partial": [self(value.func), self(value.args), self(value.keywords)]}
        if isinstance(value, MethodType):
            return {"method": [self(value.__func__), self(value.__self__)]}
        if isinstance(value, ModuleType):
            return {"module": value.__name__}
        if isinstance(value, type):
            return {"class": list(class_origin(value))}
        if "<" not in value.__qualname__:
            return {"function": list(function_origin(value))}
        # one made inside another function: its name does not say which
        inner = [cell.cell_contents for cell in value.__closure__ or () if filled(cell)]
        return {"function": [*function_origin(value), instructions(value), self(inner), self(value.__defaults__)]}

    def object_parts(self, value: object) -> Any:
        """Return a hash of an object's class and attributes."""
        if isinstance(value, torch.device | torch.Generator):
            return None
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return {"torch": str(value)}
        if isinstance(value, Enum):
            return {"enum": [*class_origin(type(value)), value.name]}
        if isinstance(value, Path):
            return {"file": self.file_content(value)} if value.is_file() else str(value)
        kind: Any = type(value)
        return {"object": hash_values(list(class_origin(kind)), self(self.state(value)))}

    def file_content(self, path: Path) -> Any:
        """Return a hash of a file's name and content; JSON is read, so that the order of its keys does not matter."""
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
        except ValueError:
            content = None
        return [path.name, hash_file(path) if content is None else hash_values(content)]

    def state(self, value: Any) -> Any:
        """Return an object's attributes by name, or else what it pickles to; None for one that has neither."""
        if type(value).__module__.partition(".")[0] == "tokenizers" and hasattr(value, "to_str"):
            content = json.loads(value.to_str())
            return hash_values({name: each for name, each in content.items() if name not in CALL_SETTINGS})
        if isinstance(value, str | int | float | bytes):
            return repr(value)
        kind: Any = type(value)
        if hasattr(value, "__dict__") or slots(kind):
            ignored = ignored_attributes(kind)
            named = {name: getattr(value, name) for name in slots(kind) if hasattr(value, name)}
            return {name: each for name, each in {**named, **vars_of(value)}.items() if name not in ignored}
        try:
            reduced = value.__reduce_ex__(2)
        except TypeError:  # a lock, an open file, or another object that holds no setting
            return None
        return reduced if isinstance(reduced, str) else [each for each in reduced[1:3] if each is not None]


def vars_of(value: object) -> dict[str, Any]:
    """Return an object's own attributes by name, a module's tensors and modules among them; none for one without."""
    found = dict(vars(value)) if hasattr(value, "__dict__") else {}
    if isinstance(value, nn.Module):
        for name in CONTENTS:
            found |= found[name]
    return found


@cache
def slots(cls: type) -> tuple[str, ...]:
    """Return the names of the attributes that a class and its bases declare as slots."""
    found = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [name for each in found for name in ([each] if isinstance(each, str) else each)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@cache
def ignored_attributes(cls: type) -> frozenset[str]:
    """Return the names of the attributes of a class's objects that change no output."""
    own = [vars(base).get(IGNORE, ()) for base in cls.__mro__]
    internals = MODULE_INTERNALS if issubclass(cls, nn.Module) else frozenset()
    is_transformers = any(base.__module__.partition(".")[0] == "transformers" for base in cls.__mro__)
    return frozenset().union(*own, internals, LOCATIONS, LOADING, SAVED_BY if is_transformers else ())


@cache
def class_origin(cls: type) -> tuple[str, ...]:
    """Return a class's path, and of other packages' classes that it is derived from their versions or source files."""
    return f"{cls.__module__}.{cls.__qualname__}", *(origin for base in cls.__mro__ for origin in foreign_origin(base))


def function_origin(function: Any) -> tuple[str, ...]:
    """Return a function's path, and of another package's function the version or source file."""
    return f"{function.__module__}.{function.__qualname__}", *foreign_origin(function)


def instructions(function: Any) -> str:
    """Return what a function does: its code, names and plain constants."""
    code = function.__code__
    constants = [each for each in code.co_consts if isinstance(each, int | float | str)]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def foreign_origin(cls: Any) -> Iterator[str]:
    """Yield the version of the package that a class or function is in, or a hash of its file where it is in none.

    Python's own and those of `VERSIONED` and `WITHOUT_NUMBERS` have none.
    """
    top = str(cls.__module__).partition(".")[0]
    if top in VERSIONED | WITHOUT_NUMBERS or (top != "__main__" and top in sys.stdlib_module_names):
        return
    source = source_of(cls)
    if source is None or "site-packages" in source.parts or "dist-packages" in source.parts:
        names = packages_distributions().get(top, ())
        yield from sorted(f"{name} {library_version(name)}" for name in set(names).difference(LIBRARIES))
    else:
        yield hash_file(source)


def source_of(cls: Any) -> Path | None:
    """Return the file that a class or function is defined in; None where there is none to read."""
    try:
        path = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None
    return Path(path) if path is not None and Path(path).is_file() else None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return a hash of a tensor's type, shape and values, wherever it is; of a meta tensor of type and shape alone."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.device.type != "meta":
        content = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(content.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def canonical(value: Any) -> str:
    """Return a description as a string, by which descriptions are put in order."""
    return json.dumps(value, sort_keys=True)


def filled(cell: Any) -> bool:
    """Return whether a closure's variable has a value."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
