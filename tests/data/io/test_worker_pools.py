"""A pool of worker processes: a worker that is killed is one line, and what waits behind an error is cancelled."""

from __future__ import annotations

import os
import time

import pytest

from virtue_pl.data.io.worker_pools import RESUME_ADVICE, worker_pool
from virtue_pl.types import VirtueError


def test_a_killed_worker_is_told_in_one_line() -> None:
    with (
        pytest.raises(VirtueError, match=r"a worker was killed, .* give fewer --workers; the same command goes on"),
        worker_pool(1, "json", RESUME_ADVICE) as pool,
    ):
        pool.submit(os._exit, 1).result()


def test_an_error_cancels_what_waits() -> None:
    with pytest.raises(ZeroDivisionError), worker_pool(1, "json") as pool:
        failing, *waiting = pool.submit(divmod, 1, 0), *(pool.submit(time.sleep, 0.2) for _ in range(50))
        failing.result()
    assert waiting[-1].cancelled()
