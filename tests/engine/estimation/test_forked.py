"""Functions in two processes return what they return in one, and fail as in one."""

from __future__ import annotations

import os

import pytest

from virtue_pl.engine.estimation.forked import run_beside, run_in_turn


def test_half_of_the_functions_run_in_another_process() -> None:
    here, there = run_beside([os.getpid, lambda: "a"], [os.getpid, lambda: "b" * 2**17])
    assert here == [os.getpid(), "a"] and there[1] == "b" * 2**17
    assert there[0] not in (os.getpid(), os.getppid())


def test_what_fails_there_runs_again_here() -> None:
    parent = os.getpid()

    def only_here() -> int:
        assert os.getpid() == parent
        return 1

    assert run_beside([lambda: 0], [only_here]) == ([0], [1]) == run_in_turn([lambda: 0], [lambda: 1])


def test_an_error_of_this_process_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])

    def fail() -> None:
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        run_beside([fail], [lambda: 1])
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], os.WNOHANG)
    with pytest.raises(ValueError, match="not today"):
        run_beside([lambda: 1], [fail])
