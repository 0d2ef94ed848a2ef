"""JSON Lines of people's own pairs to parquet, a bounded number of lines at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.io.atomic import replacing
from virtue_pl.types import VirtueError

LINES_AT_A_TIME = 10_000


def to_parquet(path: Path, table: Path, schema: pa.Schema, needed: Sequence[Sequence[str]]) -> None:
    """Writes the schema's columns of every line to `table`; a row's number is its line's, from 0.

    needed: of each of these groups of columns one must occur. Raises VirtueError naming the line that is no object or
    has another type.
    """
    seen: set[str] = set()
    with replacing(table) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for lines in _batches(path):
            seen |= {name for _, line in lines for name in line}
            writer.write_table(_table(path, lines, schema))
    missing = [" or ".join(names) for names in needed if not seen & set(names)]
    if missing:
        raise VirtueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(seen)) or 'no line'}")


def _batches(path: Path) -> Iterator[Sequence[tuple[int, Mapping[str, Any]]]]:
    """Lines with their numbers from 1, some at a time."""
    with path.open(encoding="utf-8") as file:
        numbered = enumerate(file, 1)
        while lines := list(islice(numbered, LINES_AT_A_TIME)):
            yield [(number, _object(path, number, line)) for number, line in lines]


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise VirtueError(f"{path}, line {number} is no JSON ({error}): mend it, or take it out") from error
    if not isinstance(found, dict):
        raise VirtueError(
            f"{path}, line {number} is {type(found).__name__}, expected an object with the names of columns"
        )
    return found


def _table(path: Path, lines: Sequence[tuple[int, Mapping[str, Any]]], schema: pa.Schema) -> pa.Table:
    columns = {field.name: [_value(line.get(field.name), field) for _, line in lines] for field in schema}
    try:
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, TypeError) as error:
        raise VirtueError(
            f"{path}, lines {lines[0][0]} to {lines[-1][0]}: {error}; expected"
            f" {', '.join(f'{f.name}: {f.type}' for f in schema)}"
        ) from error


def _value(value: Any, field: pa.Field) -> Any:
    """The value for a column; what a column of strings is given as an object or a list is written as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) and field.type == pa.string() else value
