"""Imports of large libraries without the parts that a command does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class DeferredPackage(ModuleType):
    """A package whose submodules can be imported, and whose own `__init__` runs when it is first asked for a name.

    Example:
        >>> DeferredPackage("rows").__name__
        'rows'
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer_package(name: str) -> None:
    """Have a package's own `__init__` run when it is first asked for a name, and not before its submodules.

    Does nothing for a package that is imported already or not installed, and for a module.

    Example:
        >>> defer_package("wsgiref")
        >>> import wsgiref.util
    """
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        module = module_from_spec(spec)
        module.__class__ = DeferredPackage
        sys.modules[name] = module


class HiddenModule:
    """A finder of modules that says of one name that there is no such module.

    Example:
        >>> HiddenModule("rows").name
        'rows'
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for the hidden module; of any other, leave it to the other finders."""
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def hide_module(name: str) -> Iterator[None]:
    """Have imports of a module fail within the block, as where it is not installed; one that is imported stays.

    Example:
        >>> with hide_module("turtledemo"):
        ...     import turtledemo
        Traceback (most recent call last):
        ModuleNotFoundError: No module named 'turtledemo'
    """
    finder = HiddenModule(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def lighten_lancedb() -> None:
    """Have LanceDB's import bring neither pandas nor the client of its remote namespaces, half of its time.

    pyarrow looks for pandas when it makes its first array; without it, it makes no data frames of its own accord, and
    imports pandas where it is asked for one. A process that has imported pyarrow already is left as it is.
    """
    if "pyarrow" in sys.modules:
        return
    with hide_module("pandas"):
        import pyarrow

        pyarrow.array([])
    defer_package("lance_namespace_urllib3_client")
