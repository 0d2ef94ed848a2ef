"""Errors that a user can fix."""

from __future__ import annotations


class VirtueError(Exception):
    """An error that a user can fix: says what was found, what was expected and which option to change.

    Example:
        >>> raise VirtueError("batch_size is 0, expected at least 1")
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: batch_size is 0, expected at least 1
    """


class DataError(VirtueError):
    """A sample that cannot be used; streaming skips and counts it.

    Args:
        key: the sample's key, by which it is found again in the dataset.
        problem: what was found and what was expected.

    Example:
        >>> str(DataError("scar/12", "damaged image"))
        'scar/12: damaged image'
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        return type(self), (self.key, self.problem)
