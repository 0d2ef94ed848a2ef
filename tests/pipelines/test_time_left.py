"""How long the rest takes: from what was timed here, and nothing before anything was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from virtue_pl.pipelines.runs import Stages
from virtue_pl.pipelines.time_left import TimeLeft, describe_seconds

TYPICAL = {"scenes": 10.0, "fit a": 100.0, "test a": 40.0}


def test_nothing_is_said_at_the_very_start_or_of_what_nothing_is_known() -> None:
    for left in (TimeLeft(), TimeLeft(typical=TYPICAL), TimeLeft(earlier=TYPICAL)):
        assert left.seconds(["fit a", "test a"]) is None
    left = TimeLeft(typical=TYPICAL)
    left.add("scenes", 20.0)
    assert left.seconds(["fit a", "test a"]) == 280.0 and left.seconds(["fit a", "fit b"]) is None
    left.add("fit a", 210.0)
    assert left.seconds(["fit b"]) == 210.0, "of a stage that no machine has timed: the mean of its kind"


def test_a_share_too_small_to_measure_by_is_not_scaled() -> None:
    left = TimeLeft(typical={"scenes": 1.0, "fit": 99.0})
    left.add("scenes", 60.0)
    assert left.seconds(["fit"]) is None


@given(st.floats(0.01, 100), st.lists(st.floats(1, 1000), min_size=3, max_size=3))
def test_a_machine_that_is_slower_throughout_takes_as_many_times_longer(slowness: float, seconds: list[float]) -> None:
    typical = dict(zip(("a", "b", "c"), seconds, strict=True))
    left = TimeLeft(typical=typical)
    left.add("a", slowness * typical["a"])
    expected = slowness * (typical["b"] + typical["c"])
    found = left.seconds(["b", "c"])
    assert found is None or found == pytest.approx(expected)
    assert (found is None) == (typical["a"] < 0.02 * sum(seconds))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "less than a minute"), (61, "about 1 minute"), (730, "about 12 minutes"), (7300, "about 2 hours")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_stages_say_how_many_there_are_and_how_long_they_take(tmp_path: Path) -> None:
    stages = Stages(tmp_path, Console(quiet=True))
    assert stages.heading("scenes") == "0. scenes"
    stages.expect(list(TYPICAL), TYPICAL)
    assert stages.heading("scenes") == "1 of 3 stages: scenes"
    stages.time_left.add("scenes", 60.0)
    assert stages.heading("fit a") == "2 of 3 stages: fit a · about 14 minutes left"
    stages.done = {"test a": {"seconds": 240.0}}
    assert stages.heading("fit a").endswith("about 10 minutes left"), "what was done is passed over"
    stages.done |= {"fit a": {"seconds": 600.0}}
    assert stages.heading("fit a").endswith("about 14 minutes left"), "behind what is done again, all is"
