"""Command-line options made of a dataclass of settings: its names, types, choices, help and defaults.

It imports no torch, and it imports nothing that a field's type names only for type checkers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


class Instance:
    """Placeholder for a class that is not imported: only YAML or Python can give an object of it.

    Example:
        >>> members(Instance | int)
        (<class 'int'>,)
    """


def add_options(parser: Any, settings: type, prefix: str = "") -> None:
    """Add an option for every field of a dataclass that a word can set, with the docstring under the field as its help.

    parser: or a group of its arguments. prefix: stands before the fields' names, as "ray-".

    A boolean that is off by default becomes a switch, one that is on `--name` and `--no-name`; a tuple takes several
    words and may be repeated. An option that is not typed leaves nothing in the namespace, so that the dataclass's
    default holds.
    """
    docs, hints = field_docs(settings), field_types(settings)
    for field in fields(settings):  # type: ignore[arg-type]
        if hints[field.name]:
            name = f"--{prefix}{field.name.replace('_', '-')}"
            parser.add_argument(
                name, default=SUPPRESS, help=help_of(field, docs[field.name]), **keywords(field, hints[field.name])
            )


def typed_options(settings: type, arguments: Namespace, prefix: str = "") -> dict[str, Any]:
    """Return the options that were typed, by the names of their fields."""
    begin = prefix.replace("-", "_")
    names = {field.name: f"{begin}{field.name}" for field in fields(settings)}  # type: ignore[arg-type]
    return {name: getattr(arguments, typed) for name, typed in names.items() if hasattr(arguments, typed)}


def read_options(settings: type[Options], arguments: Namespace, prefix: str = "") -> Options:
    """Return the dataclass with the options that were typed, and its own defaults for the rest."""
    given = typed_options(settings, arguments, prefix)
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def field_docs(settings: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def field_types(settings: type) -> dict[str, tuple[Any, ...]]:
    """Return the types that a word on the command line may be read as, by field.

    None for a field that takes objects alone.
    """
    unknown: dict[str, Any] = {}
    while True:
        try:
            hints = get_type_hints(settings, localns=unknown)
            return {field.name: members(hints[field.name]) for field in fields(settings)}  # type: ignore[arg-type]
        except NameError as error:
            unknown[str(error.name)] = Instance


def members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type, without None and classes that are not imported."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(each for each in union if each not in (NoneType, Instance))


def keywords(field: Field[Any], types: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field of the given types, of which the first counts."""
    kind = types[0]
    if kind is bool:
        return {"action": BooleanOptionalAction} if field.default else {"action": "store_true"}
    if get_origin(kind) is tuple:
        return {**keywords(field, get_args(kind)[:1]), "nargs": "+", "action": "extend"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"type": kind} if kind in (int, float) else {}


def help_of(field: Field[Any], doc: str) -> str:
    """Return the help of a field, with its default unless that is off, empty or zero."""
    default = field.default if field.default not in (None, False, (), 0) else None
    return doc if default is None or default is True else f"{doc} (default {default})"
