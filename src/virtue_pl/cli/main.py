"""The program `virtue-pl`, also installed as `lightning`: it finds the command, and imports only what that needs."""

from __future__ import annotations

import ast
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from virtue_pl import __version__
from virtue_pl.cli.disk_errors import describe_disk_error
from virtue_pl.cli.errors import UsageError
from virtue_pl.cli.memory import join_freed_memory, keep_freed_memory, leave_objects_at_exit
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.cli.quiet import quieten_libraries
from virtue_pl.types import VirtueError


class Command(NamedTuple):
    """A command's module, whose `main(argv: list[str]) -> int` is called with `prefix` and then what the user typed.

    Example:
        >>> COMMANDS["models"]["export"].module
        'virtue_pl.cli.commands.export'
    """

    module: str
    help: str
    prefix: tuple[str, ...] = ()


GROUPS = {
    "start": "start here",
    "data": "data",
    "runs": "runs, configured by --config FILE and dotted overrides",
    "models": "models",
    "results": "results",
}
"""Groups of commands, which a command's module names as GROUP, and their titles in the overview."""
LIGHTNING = {
    "fit": "train the model, or one of its parts",
    "validate": "one pass over the validation data",
    "test": "the test sets, and their report",
    "predict": "outputs for given inputs",
}
SUMMARY = re.compile(r"`virtue-pl (?P<name>[\w-]+)[^`]*`: (?P<help>.+?)\.?$", re.DOTALL)


def find_commands(folder: Path) -> dict[str, dict[str, Command]]:
    """Return all commands by the titles of their groups: one of each module in `folder`, and Lightning's four.

    A module says its command's name and help in its docstring (the form of `SUMMARY`), and the group in GROUP; it is
    read as text, not imported. Raises VirtueError for a module that does not.
    """
    found: dict[str, dict[str, Command]] = {title: {} for title in GROUPS.values()}
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        summary = SUMMARY.match(" ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split()))
        group = next((node.value.value for node in tree.body if is_group(node)), None)  # type: ignore[attr-defined]
        if summary is None or group not in GROUPS:
            raise VirtueError(
                f"{path}: expected a docstring '`virtue-pl NAME`: HELP.' and GROUP, one of {', '.join(GROUPS)}"
            )
        module = f"virtue_pl.cli.commands.{path.stem}"
        found[GROUPS[group]][summary["name"]] = Command(module, summary["help"])
    runs = {name: Command("virtue_pl.cli.lightning", text, (name,)) for name, text in LIGHTNING.items()}
    found[GROUPS["runs"]] |= runs
    return found


def is_group(node: ast.stmt) -> bool:
    """Return whether a statement is `GROUP = "..."`."""
    return (
        isinstance(node, ast.Assign)
        and [ast.unparse(target) for target in node.targets] == ["GROUP"]
        and isinstance(node.value, ast.Constant)
    )


COMMANDS = find_commands(Path(__file__).parent / "commands")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    It is 0, 1 for what a user can mend, 2 for a wrong option or config, 130 and 143 for signals.

    A mistake is one line on stderr; with VIRTUE_DEBUG=1 it is a traceback.
    """
    if argv is None:
        join_freed_memory()
        leave_objects_at_exit()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with quiet_threads():
            return run(arguments)
    except SystemExit as stop:
        return exit_code(stop)
    except KeyboardInterrupt:
        return tell("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return tell("the reader of the output has gone", 1)
    except Exception as error:
        code, disk = mistake_code(error), describe_disk_error(error)
        if (code is None and disk is None) or os.environ.get("VIRTUE_DEBUG") == "1":
            raise
        return tell(disk or str(error), code or 1)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Have a thread that meets a full disk, such as a logger's, say so in one line within the block."""
    before = threading.excepthook

    def report(found: threading.ExceptHookArgs) -> None:
        disk = None if found.exc_value is None else describe_disk_error(found.exc_value)
        if disk is None or os.environ.get("VIRTUE_DEBUG") == "1":
            before(found)
        else:
            tell(disk, 1)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def run(arguments: list[str]) -> int:
    """Run the command that the first argument names, or print the help or the version; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"virtue-pl {__version__}")
        return 0
    name, *rest = arguments
    commands = {name: command for group in COMMANDS.values() for name, command in group.items()}
    if name not in commands:
        closest = get_close_matches(name, commands, 1)
        return tell(
            f"there is no command {name!r}; "
            + (f"did you mean {closest[0]!r}?" if closest else "see virtue-pl --help"),
            2,
        )
    command = commands[name]
    quieten_libraries()
    keep_freed_memory()  # here, so that whatever the command starts has it, too: data workers are forked
    try:
        with LoadingLine("libraries"):
            module = import_module(command.module)
        return int(module.main([*command.prefix, *rest]))
    finally:
        LoadingLine.stop_active()


def overview() -> str:
    """Return the one page of help for all commands."""
    lines = ["usage: virtue-pl COMMAND [OPTIONS]", "", "Embeddings of images, texts and visual prompts.", ""]
    for title, group in COMMANDS.items():
        lines += [f"{title}:", *(f"  {name:<12}{command.help}" for name, command in group.items()), ""]
    return "\n".join([*lines, "virtue-pl COMMAND --help says more; virtue-pl --version says which one this is."])


def mistake_code(error: Exception) -> int | None:
    """Return the exit code of an error that a user can mend; None for a defect, whose traceback is wanted."""
    if not isinstance(error, VirtueError):
        return None
    return 2 if isinstance(error, UsageError) else 1


def exit_code(stop: SystemExit) -> int:
    """Return the exit code of argparse's SystemExit, whose message, if it has one, is printed."""
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    return tell(str(stop.code), 1)


def tell(message: str, code: int) -> int:
    """Print one line on stderr; returns the code."""
    print(f"virtue-pl: {message}", file=sys.stderr)
    return code
