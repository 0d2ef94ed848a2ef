"""Layers of configs: a class that replaces another one starts without what was stated for the other.

jsonargparse keeps those arguments of the replaced class whose names and types the new class takes, too, so that a run
would use a value that no file states for it. Its parser has no setting for this, only the function that `start_clean`
stands for.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import _typehints

from virtue_pl.checkpoints.class_paths import import_class

REPLACED = "discard_init_args_on_class_path_change"
"""Name of jsonargparse's function that decides which arguments stay when a class path changes."""
assert callable(getattr(_typehints, REPLACED)), f"jsonargparse has no {REPLACED}: what stands for it now?"


def start_clean(option: Any, previous: Any, value: Any) -> None:
    """Remove all arguments of a replaced class, in place, where the new class is another one.

    option: the parser or its action. previous, value: the class path and arguments before, and those that replace them.
    """
    if not previous or "class_path" not in previous or is_same_class(previous["class_path"], value["class_path"]):
        return
    for name in ("init_args", "dict_kwargs"):
        arguments = previous[name] if name in previous else {}
        for argument in list(vars(arguments) if not isinstance(arguments, dict) else arguments):
            arguments.pop(argument)


def is_same_class(first: str, second: str) -> bool:
    """Return whether two dotted paths name one class, as a package's face and a module do."""
    return first == second or (
        first is not None and (found := import_class(first)) is not None and found is import_class(second)
    )


def clean_replaced_classes() -> None:
    """Let every parser of this process start a class that replaces another one without the other's arguments."""
    setattr(_typehints, REPLACED, start_clean)
