"""Values of one's own rows, each checked for what its column must hold.

A DataError's words before ":" are the reason for which a row is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from virtue_pl.types import DataError

EmbedImage = Callable[[bytes, str], str]
"""Stores an image's bytes, given with the path that the row has for them ("" for none), and returns its path."""


def refuse_bytes(data: bytes, path: str) -> str:
    """Refuse an image inside a row, where nothing stores it. Raises ValueError."""
    raise ValueError(f"an image of {len(data)} bytes, expected a path")


@dataclass(frozen=True)
class Cell:
    """One value of a row, with the names by which an error finds it. Its methods raise DataError.

    Example:
        >>> Cell("train/3", "labels", [1, 0]).labels(count=2)
        (1, 0)
        >>> Cell("train/3", "query", 3).text()
        Traceback (most recent call last):
        virtue_pl.types.errors.DataError: train/3: query of another type: found 3 (int), expected a text
    """

    key: str
    column: str
    value: Any

    def refuse(self, expected: str) -> DataError:
        """Return the error for a value of another type."""
        return DataError(
            self.key, f"{self.column} of another type: found {describe_short(self.value)}, expected {expected}"
        )

    def text(self) -> str:
        """Return a text, which may be empty."""
        if not isinstance(self.value, str):
            raise self.refuse("a text")
        try:
            self.value.encode()
        except UnicodeEncodeError as error:
            raise DataError(self.key, f"{self.column} is no Unicode: {error}") from error
        return self.value

    def path(self) -> str:
        """Return the path of a file."""
        path = self.text()
        if "\0" in path or "\n" in path:
            raise DataError(self.key, f"{self.column} is no path: found {describe_short(path)}")
        return path

    def name(self, allowed: Sequence[str]) -> str:
        """Return one of the allowed names."""
        if self.value not in allowed:
            raise DataError(
                self.key,
                f"{self.column} unknown: found {describe_short(self.value)}, expected {' or '.join(allowed)}",
            )
        return str(self.value)

    def image(self, embed: EmbedImage) -> str:
        """Return the path of an image, a path or {bytes, path}; "" for none."""
        value = self.value
        if isinstance(value, dict) and value and set(value) <= {"bytes", "path"}:
            path = Cell(self.key, f"{self.column}.path", value.get("path") or "").path()
            if value.get("bytes") is None:
                return path
            if isinstance(value["bytes"], bytes):
                return embed(value["bytes"], path)
        if isinstance(value, bytes):
            return embed(value, "")
        if not isinstance(value, str):
            raise self.refuse("the path of an image, or {bytes, path}")
        return self.path()

    def entries(self) -> list[Any]:
        """Return a list, or one that is written as JSON; a single value counts as a list of one."""
        try:
            found = self.structured() if isinstance(self.value, str) and self.value.startswith("[") else self.value
        except DataError:  # a text that begins like a list
            found = self.value
        return list(found) if isinstance(found, list | tuple) else [found]

    def structured(self) -> Any:
        """Return the value; a text that begins as a list or an object of JSON is read as such."""
        if not (isinstance(self.value, str) and self.value.lstrip()[:1] in ("[", "{")):
            return self.value
        try:
            return json.loads(self.value)
        except (ValueError, RecursionError) as error:
            raise DataError(self.key, f"{self.column} is no JSON: {error}") from error

    def vectors(self, length: int, expected: str, exact: bool = False) -> tuple[tuple[float, ...], ...]:
        """Return vectors of so many finite numbers each; a single one counts as a list of one.

        exact: whole numbers stay such, instead of becoming floats.
        """
        found = self.structured()
        if not isinstance(found, list | tuple):
            raise self.refuse(expected)
        rows = [found] if found and not any(isinstance(value, list | tuple) for value in found) else found
        for row in rows:
            if not isinstance(row, list | tuple) or len(row) != length or not all(map(is_number, row)):
                raise self.refuse(expected)
        return tuple(tuple(value if exact else float(value) for value in row) for row in rows)

    def labels(self, count: int) -> tuple[int, ...]:
        """Return a label for each of `count` points: 1 inside, 0 outside."""
        found = self.structured()
        if not isinstance(found, list | tuple) or not all(
            is_number(value, int | float) and value in (0, 1) for value in found
        ):
            raise self.refuse("a list of 1 (inside) and 0 (outside)")
        if len(found) != count:
            raise DataError(self.key, f"{self.column} do not match: {len(found)} for {count} points")
        return tuple(int(value) for value in found)


def is_number(value: Any, kinds: Any = int | float) -> bool:
    """Return whether a value is a finite number that a float can hold, and no bool."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def describe_short(value: Any, limit: int = 80) -> str:
    """Return a value and its type, cut to about `limit` characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value)
    return f"{text[:limit]}{'...' if len(text) > limit else ''} ({type(value).__name__})"
