"""Samples that only the model's processor can refuse: named, skipped and counted; the others are collated."""

from __future__ import annotations

from typing import Any

import pytest

from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.readable_samples import collate_readable, find_problem
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import DataError, VirtueError


def collate(items: Any) -> list[str]:
    for item in items:
        if "thin" in item:
            raise VirtueError("absolute aspect ratio must be smaller than 200")
        if "twice" in item:
            raise DataError(item, "2 image tokens")
    return list(items)


def test_what_cannot_be_read_is_skipped_by_name() -> None:
    log = SkipLog(BadSampleLimits(10, 10))
    kept, batch = collate_readable(["a", "thin b", "c", "twice d"], collate, str, log)
    assert kept == batch == ["a", "c"]
    assert log.problems == {
        "thin b": "absolute aspect ratio must be smaller than 200",
        "twice d": "2 image tokens",
    }


def test_nothing_is_left_of_a_batch_that_none_can_read() -> None:
    assert collate_readable(["thin"], collate, str, SkipLog(BadSampleLimits(10, 10))) == ([], None)


def test_an_error_of_the_batch_as_a_whole_is_raised() -> None:
    def refuse_two(items: Any) -> Any:
        if len(items) > 1:
            raise VirtueError("two are too many")
        return items

    with pytest.raises(VirtueError, match="two are too many"):
        collate_readable(["a", "b"], refuse_two, str, SkipLog(BadSampleLimits(10, 10)))


def test_a_programming_error_is_no_bad_row() -> None:
    def broken(items: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    with pytest.raises(AttributeError):
        collate_readable(["a"], broken, str, SkipLog(BadSampleLimits(10, 10)))
    with pytest.raises(AttributeError):
        find_problem("a", broken)
