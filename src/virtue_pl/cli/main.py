"""The program `virtue-pl`, also installed as `lightning`: it finds the command, and imports only what that needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from virtue_pl import __version__
from virtue_pl.cli.errors import UsageError
from virtue_pl.cli.memory import join_freed_memory, keep_freed_memory
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


COMMANDS: dict[str, dict[str, Command]] = {
    "start here": {
        "quickstart": Command(
            "virtue_pl.cli.commands.quickstart",
            "fetch images, write scenes, train, and print what a visual prompt is worth",
        ),
    },
    "data": {
        "fetch": Command(
            "virtue_pl.cli.commands.fetch", "download images and weights, checked against their checksums"
        ),
        "scenes": Command("virtue_pl.cli.commands.scenes", "compose images with exact masks, boxes and captions"),
        "shards": Command("virtue_pl.cli.commands.shards", "turn a dataset into webdataset shards with a manifest"),
        "doctor": Command("virtue_pl.cli.commands.doctor", "look for what is wrong with shards or a dataset's folders"),
    },
    "runs, configured by --config FILE and dotted overrides": {
        "check": Command("virtue_pl.cli.commands.check", "build what `fit` would need, and say what would happen"),
        "fit": Command("virtue_pl.cli.lightning", "train the model, or one of its parts", ("fit",)),
        "validate": Command("virtue_pl.cli.lightning", "one pass over the validation data", ("validate",)),
        "test": Command("virtue_pl.cli.lightning", "the test sets, and their report", ("test",)),
        "predict": Command("virtue_pl.cli.lightning", "outputs for given inputs", ("predict",)),
    },
    "models": {
        "export": Command("virtue_pl.cli.commands.export", "a checkpoint or a release as a folder with its model card"),
        "parity": Command("virtue_pl.cli.commands.parity", "a model against recorded outputs, to the last digits"),
    },
    "results": {
        "eval": Command("virtue_pl.cli.commands.evaluate", "a model on the sets of SCaR and MMEB, with a report"),
        "ablations": Command(
            "virtue_pl.cli.commands.ablations", "train the variants of a study, compare and plot them"
        ),
        "robustness": Command(
            "virtue_pl.cli.commands.robustness", "what imprecise boxes, clicks and masks cost a model"
        ),
        "compare": Command(
            "virtue_pl.cli.commands.compare", "tested runs side by side, with intervals and paired differences"
        ),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    It is 0, 1 for what a user can mend, 2 for a wrong option or config, 130 and 143 for signals.

    A mistake is one line on stderr; with VIRTUE_DEBUG=1 it is a traceback.
    """
    if argv is None:
        join_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(arguments)
    except SystemExit as stop:
        return exit_code(stop)
    except KeyboardInterrupt:
        return tell("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return tell("the reader of the output has gone", 1)
    except Exception as error:
        code = mistake_code(error)
        if code is None or os.environ.get("VIRTUE_DEBUG") == "1":
            raise
        return tell(str(error), code)


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
    keep_freed_memory()  # here, so that whatever the command starts has it, too: data workers are forked
    return int(import_module(command.module).main([*command.prefix, *rest]))


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
