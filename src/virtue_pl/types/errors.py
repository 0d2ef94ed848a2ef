"""Errors that a user can fix, and the names that their messages suggest."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


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


def suggest_name(name: str, names: Sequence[str]) -> str:
    """Return "; did you mean NAME?", of the name that is nearest to one that is none of them, or else all names.

    Example:
        >>> suggest_name("regons", ["text", "image", "regions"])
        "; did you mean 'regions'?"
        >>> suggest_name("colour", ["text", "image", "regions"])
        '; there are text, image, regions'
    """
    closest = get_close_matches(name, names, 1)
    return f"; did you mean {closest[0]!r}?" if closest else f"; there are {', '.join(names)}"
