"""The line that says what is being loaded: on a terminal alone, and only where loading takes long."""

from __future__ import annotations

import gc
import io
import logging
import sys
import time
from collections.abc import Callable

import pytest

from virtue_pl.cli import progress
from virtue_pl.cli.main import main
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.types import VirtueError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """A function that puts a terminal in the stead of stderr, which pytest sets anew when a test begins."""

    def opened() -> Terminal:
        found = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return opened


def wait_for(line: LoadingLine) -> None:
    """Wait until the line is shown."""
    for _ in range(1000):
        if line._status is not None:
            return
        time.sleep(0.01)
    pytest.fail("the line is not shown")


def test_a_terminal_is_told_what_is_loaded_and_what_is_logged_meanwhile(
    open_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal()
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    logger = logging.getLogger("a library")
    handler = logging.StreamHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    with LoadingLine("the model") as line:
        wait_for(line)
        logger.warning("a line of a library")
    assert "loading the model" in terminal.getvalue() and "a line of a library\n" in terminal.getvalue()
    assert handler.stream is terminal and sys.stderr is terminal
    shown = terminal.getvalue()
    logger.warning("behind it")
    assert terminal.getvalue() == shown + "behind it\n"


def test_what_loads_quickly_says_nothing(open_terminal: Callable[[], Terminal]) -> None:
    terminal = open_terminal()
    with LoadingLine("the model"):
        pass
    assert terminal.getvalue() == ""


def test_a_pipe_is_told_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with LoadingLine("the model"):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_an_error_ends_the_line(open_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails while it loads leaves no line behind."""

    def fail(name: str) -> None:
        line = LoadingLine("a part").start()
        wait_for(line)
        raise OSError("not there")

    terminal = open_terminal()
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr("virtue_pl.cli.main.import_module", fail)
    with pytest.raises(OSError, match="not there"):
        main(["fit"])
    assert "loading a part" in terminal.getvalue() and sys.stderr is terminal


def test_the_garbage_collector_waits_while_something_is_loaded() -> None:
    first, second = LoadingLine("libraries"), LoadingLine("the model")
    with first:
        assert not gc.isenabled()
    assert gc.isenabled()
    first.start()
    with second:
        assert not gc.isenabled(), "another line took over"
    first.stop()
    assert gc.isenabled()
    gc.disable()
    try:
        with first:
            pass
        assert not gc.isenabled(), "somebody else has switched it off"
    finally:
        gc.enable()


def test_an_error_lets_the_garbage_collector_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        LoadingLine("a part").start()
        raise VirtueError("not there")

    monkeypatch.setattr("virtue_pl.cli.main.import_module", fail)
    assert main(["fit"]) == 1 and gc.isenabled()
