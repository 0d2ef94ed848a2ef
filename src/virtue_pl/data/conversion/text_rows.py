"""Rows of one's own data in JSON Lines and CSV, one at a time, each with the words by which it is found again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.types import VirtueError

MAX_CELL = 64 * 1024 * 1024
"""Characters that one cell of CSV may have."""


@dataclass(frozen=True)
class SourceRow:
    """A row as its source has it, or what makes it unreadable.

    Example:
        >>> SourceRow(0, "train.jsonl, line 1", {"query": "a kettle"}).problem
        ''
    """

    number: int
    """Counted over the source, from 0."""
    where: str
    """File and line, row or id."""
    values: Mapping[str, Any]
    problem: str = ""
    """Why it has no values; the words before ":" are the reason."""
    image_size: tuple[int, ...] = ()
    """(height, width) that the source says its image has, in whose pixels its region is; () where it says none."""


def read_json_lines(path: Path) -> Iterator[SourceRow]:
    """Yield the objects of a file of JSON Lines. Empty lines are no rows."""
    number = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield _json_row(number, f"{path.name}, line {line_number}", line)
                number += 1


class RepeatedNameError(ValueError):
    """An object of JSON with one name twice, of whose values only the last would be read.

    Example:
        >>> raise RepeatedNameError("target")
        Traceback (most recent call last):
        virtue_pl.data.conversion.text_rows.RepeatedNameError: target
    """


def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON from its names and values. Raises RepeatedNameError where a name comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedNameError(next(name for name in names if names.count(name) > 1))
    return found


def _json_row(number: int, where: str, line: bytes) -> SourceRow:
    try:
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=refuse_repeats)
    except RepeatedNameError as error:
        return SourceRow(number, where, {}, f"given twice: one object has {str(error)!r} twice, expected one")
    except (ValueError, RecursionError) as error:
        return SourceRow(number, where, {}, f"no JSON: {error}")
    if not isinstance(found, dict):
        return SourceRow(number, where, {}, f"no object: found {type(found).__name__}, expected names and values")
    return SourceRow(number, where, _with_float_box(found))


def _with_float_box(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the numbers of its `bbox` as floats, as JSON Lines have always been stored."""
    box = row.get("bbox")
    if not isinstance(box, list) or not all(type(value) in (int, float) and abs(value) < 2**53 for value in box):
        return row
    return {**row, "bbox": [float(value) for value in box]}


def read_csv(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a CSV file with a header. An empty cell is no value; lists in cells are JSON.

    Raises VirtueError where a column has no name, or two have the same.
    """
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) != len(names) or not all(names):
            raise VirtueError(f"{path}: its header is {names}, expected a name for each column, none of them twice")
        number = -1
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                number += 1
                yield SourceRow(number, f"{path.name}, line {line}", {}, f"no CSV: {error}")
                continue
            if cells is None:
                return
            if not any(cells):
                continue
            number += 1
            yield _csv_row(number, f"{path.name}, line {line}", names, cells)


def _csv_row(number: int, where: str, names: list[str], cells: list[str]) -> SourceRow:
    if len(cells) != len(names):
        return SourceRow(number, where, {}, f"cells do not match: {len(cells)} for {len(names)} columns")
    row: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return _with_json_box(SourceRow(number, where, row))


def _with_json_box(row: SourceRow) -> SourceRow:
    """Return the row with its `bbox`, which is text in a cell, read as JSON; one that is none stays text."""
    text = row.values.get("bbox")
    if not isinstance(text, str):
        return row
    try:
        return SourceRow(row.number, row.where, _with_float_box({**row.values, "bbox": json.loads(text)}))
    except (ValueError, RecursionError):
        return row


READERS = {".jsonl": read_json_lines, ".csv": read_csv}
"""Readers of text files, by their suffix."""
