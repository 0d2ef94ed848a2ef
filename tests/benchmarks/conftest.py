"""What a benchmark changes in its process for good is given back behind its test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    """Let loggers that a script silences speak again, and torch have the threads that it had."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    levels = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for logger, level, propagate, disabled in levels:
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
