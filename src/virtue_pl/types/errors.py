"""Errors that a user can mend."""

from __future__ import annotations


class VirtueError(Exception):
    """A mistake a user can mend: says what was found, what was expected and which option to change."""


class DataError(VirtueError):
    """A bad sample. Streaming skips and counts it; `key` finds it again."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem
