"""The dispatcher: what it knows without importing anything heavy, and how mistakes are told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from virtue_pl import __version__
from virtue_pl.cli import main as dispatcher
from virtue_pl.cli.main import COMMANDS, Command, find_commands, main
from virtue_pl.types import VirtueError

NAMES = [name for group in COMMANDS.values() for name in group]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_neither_torch_nor_lightning(option):
    code = (
        f"import sys; from virtue_pl.cli.main import main; code = main([{option!r}]); print(sorted(sys.modules),"
        " file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "virtue_pl.cli.main" in done.stderr
    assert not [
        name for name in ("torch", "lightning", "transformers", "rich", "jsonargparse") if f"'{name}'" in done.stderr
    ]
    assert done.stdout.strip()


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "virtue_pl", "fitt"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "virtue-pl: there is no command 'fitt'; did you mean 'fit'?\n")


def test_help_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in NAMES)
    assert max(map(len, shown.splitlines())) <= 100


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"virtue-pl {__version__}\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_module(name):
    command = next(group[name] for group in COMMANDS.values() if name in group)
    assert importlib.util.find_spec(command.module) is not None


def test_a_command_is_one_file(tmp_path):
    text = '"""`virtue-pl probe FOLDER`: look at a folder."""\n\nGROUP = "data"\n'
    (tmp_path / "probe.py").write_text(text)
    assert find_commands(tmp_path)["data"] == {"probe": Command("virtue_pl.cli.commands.probe", "look at a folder")}


HELP = '"""`virtue-pl probe`: look."""'


@pytest.mark.parametrize("text", ['GROUP = "data"', HELP, f'{HELP}\nGROUP = "date"'])
def test_a_command_must_say_its_help_and_its_group(tmp_path, text):
    (tmp_path / "probe.py").write_text(text)
    with pytest.raises(VirtueError, match=r"probe\.py: expected a docstring .* and GROUP, one of start, data"):
        find_commands(tmp_path)


def test_an_unknown_command_without_a_likeness(capsys):
    assert main(["zzz"]) == 2
    assert capsys.readouterr().err == "virtue-pl: there is no command 'zzz'; see virtue-pl --help\n"


class Probe:
    """A command's module, which does what it is told."""

    error: BaseException | None = None

    @classmethod
    def main(cls, argv: list[str]) -> int:
        if cls.error is not None:
            raise cls.error
        return len(argv)


@pytest.fixture
def probe(monkeypatch):
    """Runs a command that raises the given error, or returns the number of its arguments."""
    monkeypatch.setitem(COMMANDS["data"], "probe", Command("probe", "", ("first",)))
    monkeypatch.setattr(dispatcher, "import_module", lambda name: Probe)
    monkeypatch.delenv("VIRTUE_DEBUG", raising=False)

    def probed(error):
        monkeypatch.setattr(Probe, "error", error)
        return main(["probe", "second"])

    return probed


def test_a_command_gets_its_prefix_and_its_arguments(probe):
    assert probe(None) == 2


def test_every_command_keeps_freed_memory(probe, monkeypatch):
    kept = []
    monkeypatch.setattr(dispatcher, "keep_freed_memory", lambda: kept.append(True))
    probe(None)
    assert kept == [True]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (VirtueError("no shards in data/"), 1, "virtue-pl: no shards in data/\n"),
        (KeyboardInterrupt(), 130, "virtue-pl: interrupted\n"),
        (SystemExit(3), 3, ""),
        (SystemExit("no"), 1, "virtue-pl: no\n"),
        (SystemExit(), 0, ""),
    ],
)
def test_mistakes_are_one_line(probe, capsys, error, code, told):
    assert probe(error) == code
    assert capsys.readouterr().err == told


def test_usage_errors_exit_with_2(probe):
    from virtue_pl.cli.errors import UsageError

    assert probe(UsageError("unknown key")) == 2


def test_a_defect_keeps_its_traceback(probe):
    with pytest.raises(ZeroDivisionError):
        probe(ZeroDivisionError())


def test_debugging_shows_the_traceback_of_a_mistake(probe, monkeypatch):
    monkeypatch.setenv("VIRTUE_DEBUG", "1")  # after `probe`, which unsets it
    with pytest.raises(VirtueError):
        probe(VirtueError("no"))


def test_a_reader_that_goes_away_is_no_traceback():
    code = "import sys; from virtue_pl.cli.main import main; sys.exit(main(['--help']))"
    writer = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.close()
    told = writer.stderr.read()
    writer.stderr.close()
    assert (writer.wait(), told) == (1, "virtue-pl: the reader of the output has gone\n")
