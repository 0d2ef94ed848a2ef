"""Dotted paths of classes: import them, and suggest a class where a path names nothing.

Configs, runs and exported folders name this package's classes by the faces of its packages, as in
`virtue_pl.losses.InfoNCELoss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_args

import virtue_pl


def import_class(path: str) -> Any:
    """Return the object that a dotted path names, through a package's face or in full; None where there is none.

    Example:
        >>> import_class("virtue_pl.types.VisualPrompt").__module__
        'virtue_pl.types.prompts'
    """
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def public_classes() -> dict[str, str]:
    """Return the path of every class in a package's face by the class's name, as "virtue_pl.losses.InfoNCELoss"."""
    packages = [module.name for module in iter_modules(virtue_pl.__path__) if module.ispkg]
    return {
        name: f"virtue_pl.{package}.{name}"
        for package in packages
        for name in getattr(import_module(f"virtue_pl.{package}"), "__all__", ())
        if name[0].isupper() and not name.isupper()
    }


def public_path(cls: type) -> str:
    """Return the path by which a config names a class: a face's where one has it, or else its module's."""
    path = public_classes().get(cls.__name__)
    return path if path is not None and import_class(path) is cls else f"{cls.__module__}.{cls.__qualname__}"


def explain_missing(path: str, allowed: Iterable[type] = ()) -> str:
    """Return one sentence for a class path that names nothing: the class's path today, or the classes that fit.

    allowed: the types that the option takes, if the caller has them; concrete subclasses of them are suggested.

    Example:
        >>> explain_missing("virtue_pl.parts.contrastive_loss.InfoNCELoss")
        'there is no class virtue_pl.parts.contrastive_loss.InfoNCELoss: it is virtue_pl.losses.InfoNCELoss'
    """
    name, faces = path.rpartition(".")[2], public_classes()
    missing = f"there is no class {path}"
    if name in faces:
        return f"{missing}: it is {faces[name]}"
    bases = tuple(allowed)
    fitting = {found: face for found, face in faces.items() if bases and is_concrete(import_class(face), bases)}
    close = [one for one in get_close_matches(name, fitting or faces, 3, 0.5) if is_concrete(import_class(faces[one]))]
    if close:
        return f"{missing}: the closest is {faces[close[0]]}"
    if fitting:
        return f"{missing}: expected one of {', '.join(sorted(fitting.values()))}"
    return f"{missing}, expected one of this version of virtue-pl"


def is_concrete(cls: Any, bases: tuple[type, ...] = (object,)) -> bool:
    """Return whether an object is a class that can be built and is derived from one of the bases."""
    return isinstance(cls, type) and issubclass(cls, bases) and not inspect.isabstract(cls)


def classes_in(hint: Any) -> Iterator[type]:
    """Yield this package's classes in a type hint, as InfoNCELoss in `InfoNCELoss | None`, or a factory's product."""
    if inspect.isclass(hint) and hint.__module__.startswith("virtue_pl."):
        yield hint
    for argument in get_args(hint):
        yield from classes_in(argument)
