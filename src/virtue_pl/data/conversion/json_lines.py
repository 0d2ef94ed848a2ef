"""JSON Lines of own pairs to parquet, a bounded number of lines at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.io.atomic import replace_whole
from virtue_pl.types import VirtueError

LINES_PER_READ = 10_000


def to_parquet(path: Path, table: Path, schema: pa.Schema, needed: Sequence[Sequence[str]]) -> None:
    """Write the schema's columns of every line to `table`; a row's number is its line's, from 0.

    Of each group of columns in `needed` one must occur. Raises VirtueError, which names the line, for one that is no
    object or has a value of another type.
    """
    seen: set[str] = set()
    with replace_whole(table) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for lines in _batches(path):
            seen |= {name for _, line in lines for name in line}
            writer.write_table(_table(path, lines, schema))
    missing = [" or ".join(names) for names in needed if not seen & set(names)]
    if missing:
        raise VirtueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(seen)) or 'no line'}")


def _batches(path: Path) -> Iterator[Sequence[tuple[int, Mapping[str, Any]]]]:
    """Yield lines with their numbers from 1, `LINES_PER_READ` at a time."""
    with path.open(encoding="utf-8") as file:
        numbered = enumerate(file, 1)
        while lines := list(islice(numbered, LINES_PER_READ)):
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
    """Return the value for a column; an object or a list in a column of strings is written as JSON."""
    return json.dumps(value) if isinstance(value, dict | list) and field.type == pa.string() else value
