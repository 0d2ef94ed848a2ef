"""jsonargparse's long messages as one line: the key, the value found, the type expected, and the closest name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from virtue_pl.types import VirtueError, suggest_path

if TYPE_CHECKING:
    from omegaconf.errors import OmegaConfBaseException


class UsageError(VirtueError):
    """A command line or a config that cannot be read: exit code 2.

    Example:
        >>> raise UsageError("model.loss: expected float, found 'high'")
        Traceback (most recent call last):
        virtue_pl.cli.errors.UsageError: model.loss: expected float, found 'high'
    """


@dataclass(frozen=True)
class Finding:
    """The innermost complaint of a nested message.

    keys: from the root. class_path: the class that the last key is an argument of. given: the value, as text.
    allowed: the paths of the types that the key takes, if the message has them.

    Example:
        >>> innermost('Parser key "model": No action for key "rows"').keys
        ('model',)
    """

    keys: tuple[str, ...]
    class_path: str | None
    problem: str
    given: str = ""
    allowed: tuple[str, ...] = ()


_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"[^:]*:(?P<rest>.*)')
_CLASS = re.compile(r"Problem with given class_path '(?P<class_path>[^']+)':(?P<rest>.*)")
_SUBTYPES = re.compile(r"<class '(?P<path>virtue_pl\.[\w.]+)'>")
_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value type:")


def one_line(message: str, options: Iterable[str] = ()) -> str:
    """Return a message of jsonargparse in one line. options: the parser's own keys, for suggestions."""
    found = innermost(message)
    where = ".".join(found.keys)
    problem = explain(found, tuple(options))
    return f"{where}: {problem}" if where else problem


def innermost(message: str) -> Finding:
    """Return the first of the most deeply nested complaints; a Union's alternatives there are joined by "or"."""
    path: list[tuple[int, str, str]] = []
    best, best_depth, given = Finding((), None, message), -1, ""
    allowed: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("Subtypes: "):
            allowed[_finding(path, "").keys] = tuple(_SUBTYPES.findall(text))
        depth = len(line) - len(line.lstrip()) + 2 * line.strip().startswith("- ")
        if text.startswith("Given value: ") and not given and best_depth >= 0:
            given = text.removeprefix("Given value: ")
        if not text or text.startswith((*_NOISE, "Given value: ")):
            continue
        path = [step for step in path if step[0] < depth]
        if step := _KEY.match(text) or _CLASS.match(text):
            kind, rest = ("key" if step.re is _KEY else "class"), step["rest"].strip()
            path.append((depth, kind, step[1]))
            if not rest:
                continue
            text = rest
        if depth > best_depth:
            best, best_depth, given = _finding(path, text), depth, ""
        elif (
            depth == best_depth
            and text.startswith("Expected a ")
            and best.problem.startswith("Expected a ")
            and best.keys == _finding(path, text).keys
        ):
            expected, got, value = best.problem.partition(". Got value: ")
            best = Finding(best.keys, best.class_path, f"{expected} or {text.removeprefix('Expected a ')}{got}{value}")
    if not path and not best.keys:
        return Finding((), None, message)
    return Finding(best.keys, best.class_path, best.problem, given, allowed.get(best.keys, ()))


def _finding(path: list[tuple[int, str, str]], problem: str) -> Finding:
    classes = [value for _, kind, value in path if kind == "class"]
    return Finding(tuple(value for _, kind, value in path if kind == "key"), classes[-1] if classes else None, problem)


def explain(found: Finding, options: tuple[str, ...]) -> str:
    """Return the complaint in this project's words; one of another kind is only shortened."""
    for pattern, answer in _ANSWERS:
        if match := pattern.search(found.problem):
            return answer(match, found, options)
    return _short(found.problem, 300)


def _unknown_key(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    name = match["name"]
    if found.class_path is None:
        group = f"{match['group']}." if match.groupdict().get("group") else ""
        return f"unknown key {group + name!r}{_closest(group + name, options)}"
    name = name.split(".")[0]
    arguments = _arguments(found.class_path)
    hint = _closest(name, arguments) or f", expected some of {', '.join(arguments)}"
    return f"{found.class_path} has no argument {name!r}{hint}"


def _unknown_options(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    first = match["names"].split()[0]
    name = first.split("=")[0]
    if not name.startswith("-"):
        return f"unexpected {name!r}; an option starts with --"
    return f"unknown option {name!r}{_closest(name, [f'--{option}' for option in options])}"


def _unknown_class(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    from virtue_pl.checkpoints.class_paths import explain_missing, import_class

    path = found.class_path or f"{match['module']}.{match['name']}"
    if not path.startswith("virtue_pl."):
        return f"module {match['module']} has no {match['name']!r}{_closest(match['name'], _names(match['module']))}"
    return explain_missing(path, [cls for cls in map(import_class, found.allowed) if isinstance(cls, type)])


def _unknown_module(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    from virtue_pl.checkpoints.class_paths import explain_missing

    if found.class_path is not None and found.class_path.startswith("virtue_pl."):
        return explain_missing(found.class_path)
    return f"{found.class_path or 'class_path'}: there is no module {match['module']!r}"


def _callable(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    return explain(Finding(found.keys, match["class_path"] or found.class_path, match["problem"]), options)


def _wrong_type(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    expected, _, value = found.problem.removeprefix("Expected a ").partition(". Got value: ")
    names = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", expected).replace("NoneType", "null").replace("typing.", "")
    value = value or found.given
    return f"expected {names}" + (f", found {_short(value, 80)!r}" if value else "")


def _bare_name(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    closest = _closest_class(match["name"])
    hint = f"; did you mean {closest!r}?" if closest else ", expected a class by its path, such as package.module.Name"
    return f"there is no class {match['name']!r}{hint}"


def _closest_class(name: str) -> str | None:
    """Return the path of this package's class whose name is closest to a bare one; None where none is close."""
    from virtue_pl.checkpoints.class_paths import public_classes

    classes = public_classes() if re.fullmatch(r"[A-Z]\w+", name) else {}
    closest = get_close_matches(name, classes, 1, 0.75)
    return classes[closest[0]] if closest else None


def _not_yaml(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    return "not YAML: " + _short(match["problem"].replace('in "<unicode string>", ', ""), 200)


def _no_config(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    path = Path(match["path"])
    return f"no such file{suggest_path(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)}"


def _no_file(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    if closest := _closest_class(match["path"]):
        return f"there is no class {match['path']!r}; did you mean {closest!r}?"
    return f"{match['path']!r} is neither a file that can be read nor the name of a class that can be imported"


def _missing(match: re.Match[str], found: Finding, options: tuple[str, ...]) -> str:
    return f"{found.class_path or 'the config'} needs {match['names']}"


_ANSWERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Finding, tuple[str, ...]], str]], ...] = (
    (
        re.compile(
            r"expects a function or a callable class: (?P<problem>.+?)\.? Got value:"
            r" (?:Namespace\(class_path='(?P<class_path>[^']+)')?"
        ),
        _callable,
    ),
    (re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'"), _unknown_key),
    (re.compile(r"Option '(?P<name>[^']+)' is not accepted"), _unknown_key),
    (re.compile(r"unrecognized arguments: (?P<names>.+)"), _unknown_options),
    (re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'"), _unknown_class),
    (re.compile(r"^No (?P<module>[\w.]+) attribute (?P<name>\w+)"), _unknown_class),
    (re.compile(r"No module named '(?P<module>[^']+)'"), _unknown_module),
    (re.compile(r"Problems parsing config: (?P<problem>.+)", re.DOTALL), _not_yaml),
    (re.compile(r"File does not exist: '(?P<path>[^']+)'"), _no_config),
    (re.compile(r"Expected a path but (?P<path>\S+) either not accessible"), _no_file),
    (re.compile(r"the following arguments are required: (?P<names>.+)"), _missing),
    (re.compile(r"^Expected a dot import path string: (?P<name>[A-Z]\w+)"), _bare_name),
    (re.compile(r"^Expected a "), _wrong_type),
)


def missing_package(error: BaseException) -> VirtueError | None:
    """Return one line for an object that cannot be built because its package is not installed; None for others.

    error: what jsonargparse raised, whose causes and message are searched.
    """
    message, cause = str(error), error
    while (cause := cause.__cause__ or cause.__context__) is not None:  # type: ignore[assignment]
        message += f"\n{cause}"
    for pattern in _PACKAGES:
        if match := pattern.search(message):
            classes = re.findall(r"class_path[ =]'(?P<class_path>[\w.]+)'", message)
            needed = f"{classes[-1]} needs" if classes else "the config names a class that needs"
            return VirtueError(
                f"{needed} the package {match['name']}, which is not installed: `pip install {match['name']}`, or name"
                " another class"
            )
    return None


_PACKAGES = (
    re.compile(r"pip install -?-?U? ?['\"`]?(?P<name>[\w-]+)"),
    re.compile(r"The '(?P<name>[\w-]+)[^']*' distribution was not found"),
    re.compile(r"Module not found: '(?P<name>[\w-]+)[^']*'"),
    re.compile(r"No module named '(?P<name>\w+)"),
)


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _names(module: str) -> list[str]:
    try:
        return dir(import_module(module))
    except ImportError:
        return []


def _closest(name: str, names: Iterable[str]) -> str:
    closest = get_close_matches(name, names, 1)
    return f"; did you mean {closest[0]!r}?" if closest else ""


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def interpolation(error: OmegaConfBaseException) -> str:
    """Return one line for a `${...}` that names nothing."""
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first[0].lower()}{first[1:]}; `shared` states what is interpolated"
