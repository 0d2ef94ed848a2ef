"""Flags of signals: none is lost, whenever the signal comes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from lightning import Trainer

from virtue_pl.engine.ranks import signals


@pytest.fixture
def followed() -> Iterator[Any]:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    signals.follow_signals(trainer)
    yield trainer._signal_connector


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_that_comes_while_flags_are_merged_counts_at_the_next_step(
    followed: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge_and_be_told(flags: list[bool]) -> list[bool]:
        found = list(flags)
        for _ in range(times):
            followed._slurm_sigusr_handler_fn(signal.SIGUSR1, None)
        return found

    monkeypatch.setattr(signals, "merge_flags", merge_and_be_told)
    assert followed.merge() is False
    monkeypatch.setattr(signals, "merge_flags", list)
    assert [followed.merge() for _ in range(3)] == [True, False, False]


def test_a_signal_to_stop_that_comes_while_flags_are_merged_stays(
    followed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge_and_be_told(flags: list[bool]) -> list[bool]:
        found = list(flags)
        followed._sigterm_notifier_fn(signal.SIGTERM, None)
        return found

    monkeypatch.setattr(signals, "merge_flags", merge_and_be_told)
    followed.merge()
    assert followed.agreed is False
    monkeypatch.setattr(signals, "merge_flags", list)
    followed.merge()
    assert followed.agreed is True
