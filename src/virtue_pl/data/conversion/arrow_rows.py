"""Rows of one's own data in parquet files, and in the Arrow files of Hugging Face's `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import readable_parquet
from virtue_pl.data.conversion.text_rows import SourceRow
from virtue_pl.types import VirtueError

ROWS_PER_READ, ROWS_WITH_IMAGES = 8192, 64
"""Rows in memory at a time, and where images are inside them."""


def read_tables(files: Sequence[Path]) -> Iterator[SourceRow]:
    """Yield the rows of parquet or Arrow files, one file after the other; a row's number counts over all of them.

    Raises VirtueError for a file that is damaged.
    """
    start = 0
    for path in files:
        number = -1
        for number, values in enumerate(_values(path)):
            yield SourceRow(start + number, f"{path.name}, row {number}", values)
        start += number + 1


def table_columns(path: Path) -> list[str]:
    """Return the names of the columns of a parquet or Arrow file. Raises VirtueError for a damaged one."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with readable_parquet(path):
            return list(pq.read_schema(path).names)
    with _arrow_batches(path) as (schema, _):
        return list(schema.names)


def _values(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each row's values by column; class labels as their names."""
    import pyarrow.parquet as pq

    if path.suffix != ".parquet":
        with _arrow_batches(path) as (schema, batches):
            names = class_names(schema)
            for batch in batches:
                for start in range(0, len(batch), ROWS_PER_READ):
                    yield from _rows(batch.slice(start, ROWS_PER_READ), names)
        return
    with readable_parquet(path), pq.ParquetFile(path) as file:
        names = class_names(file.schema_arrow)
        for batch in file.iter_batches(batch_size=_rows_per_read(file.schema_arrow)):
            yield from _rows(batch, names)


def _rows(batch: Any, names: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield a batch's rows; bytes are copied a row at a time."""
    per_read = _rows_per_read(batch.schema)
    for start in range(0, len(batch), per_read):
        for row in batch.slice(start, per_read).to_pylist():
            for column, labels in names.items():
                value = row[column]
                row[column] = labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value
            yield row


def _rows_per_read(schema: Any) -> int:
    return ROWS_WITH_IMAGES if "binary" in str(schema.types) else ROWS_PER_READ


@contextmanager
def _arrow_batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Provide the schema and the batches of an Arrow file, a stream (as `save_to_disk` writes it) or a file of many."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            yield _open_arrow(source)
    except (pa.ArrowException, OSError) as error:
        raise VirtueError(f"{path} is no Arrow file, or a damaged one: {error}: write it again") from error


def _open_arrow(source: Any) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa

    try:
        reader = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    return reader.schema, iter(reader)


def class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Return the names of the columns that Hugging Face's `ClassLabel` stores as numbers, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: about["names"]
            for column, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel" and column in schema.names
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def saved_files(folder: Path) -> tuple[Path, ...]:
    """Return the Arrow files of a folder of `save_to_disk`, in order.

    Raises VirtueError where its state is damaged, or its rows are chosen by indices, which are not read.
    """
    with _saved_state(folder) as state:
        files = tuple(folder / Path(entry["filename"]).name for entry in state["_data_files"])
        indices = state.get("_indices_data_files")
    if indices:
        raise VirtueError(
            f"{folder} holds a part of its rows, or another order of them, by indices: save it again after"
            " flatten_indices()"
        )
    return files


def saved_split(folder: Path) -> str:
    """Return the split that a folder of `save_to_disk` says it is; "train" where it says none."""
    with _saved_state(folder) as state:
        return str(state.get("_split") or "train")


@contextmanager
def _saved_state(folder: Path) -> Iterator[dict[str, Any]]:
    """Provide what a folder of `save_to_disk` says of itself. Raises VirtueError where that is damaged."""
    try:
        yield dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VirtueError(f"{folder}/state.json is damaged ({error!r}): save the dataset again") from error
