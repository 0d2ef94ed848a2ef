"""Grouped rows: those of a literal sort, in one reading of the file, whatever fits into memory; damage is one line."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from virtue_pl.data.conversion.grouped_parquet import Group, column_names, grouped_rows
from virtue_pl.types import VirtueError

COLUMNS = ["text", "image", "box", "candidates", "about"]


def write_rows(path: Path, count: int, keys: int) -> list[dict[str, Any]]:
    """Rows of every kind of column that datasets have, with missing values; a column that is not read as well."""
    draw = random.Random(count)
    rows = [
        {
            "image": draw.choice([None, *(f"bild {number} ü.jpg" for number in range(keys))]),
            "text": f"text {number}",
            "box": None if number % 7 == 0 else [float(number), 1.5],
            "candidates": [f"{number} {index}" for index in range(number % 4)],
            "about": {"size": [number, 2], "counts": "x" * (number % 3)},
            "unread": number,
        }
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=13)
    return rows


def literal(rows: list[dict[str, Any]], by: list[str], seed: int, key: Callable[..., str]) -> list[Group]:
    """All rows sorted by the hash of their key, the key and their number."""

    def order(number: int) -> tuple[int, str, int]:
        name = key(*(rows[number][column] for column in by))
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=str(seed).encode()).digest()
        return int.from_bytes(digest, "little"), name, number

    numbers = sorted(range(len(rows)), key=order)
    return [
        [(number, {name: rows[number][name] for name in COLUMNS}) for number in group]
        for _, group in groupby(numbers, key=lambda number: order(number)[:2])
    ]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(("count", "keys"), [(0, 1), (1, 1), (120, 1), (120, 5), (120, 200)])
@pytest.mark.parametrize("held", [1, 7, 60, 119, 120, 50_000])
def test_groups_are_those_of_a_literal_sort(tmp_path: Path, held: int, count: int, keys: int, seed: int) -> None:
    rows = write_rows(tmp_path / "rows.parquet", count, keys)
    found = list(
        grouped_rows(tmp_path / "rows.parquet", COLUMNS, ["image", "box"], seed, held, lambda image, box: str(image))
    )
    expected = literal(rows, ["image", "box"], seed, lambda image, box: str(image))
    assert found == expected
    assert [list(row) for group in found for _, row in group] == [COLUMNS] * count


def test_the_file_is_read_once_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is read once; what waits on disk goes with the last group, or where the reader stops."""
    write_rows(tmp_path / "rows.parquet", 120, 40)
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(waiting))
    read, iterate = [], pq.ParquetFile.iter_batches

    def count(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Any:
        for batch in iterate(self, *arguments, **options):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    for held in (5, 30, 1000):
        read.clear()
        assert sum(map(len, grouped_rows(tmp_path / "rows.parquet", COLUMNS, ["image"], 0, held))) == 120
        assert sum(read) == 120 and list(waiting.iterdir()) == []
    groups = grouped_rows(tmp_path / "rows.parquet", COLUMNS, ["image"], 0, 5)
    next(groups)
    assert len(list(waiting.iterdir())) == 1
    groups.close()
    assert list(waiting.iterdir()) == []


def test_few_rows_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as Python objects: of one part of the order, about as many as may be held."""
    from virtue_pl.data.conversion import grouped_parquet

    write_rows(tmp_path / "rows.parquet", 1200, 1000)
    held, collect = [], grouped_parquet._groups
    monkeypatch.setattr(
        grouped_parquet,
        "_groups",
        lambda batches: collect([held.append(sum(map(len, some := list(batches)))), *some][1:]),
    )
    list(grouped_rows(tmp_path / "rows.parquet", COLUMNS, ["image"], 0, 100))
    assert len(held) == 12 and sum(held) == 1200 and max(held) < 170


@pytest.mark.parametrize("column", ["text", "texts"])
def test_a_text_that_is_none_is_one_line(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"text": "a red disc", "texts": ["a blue disc"]}]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False, write_statistics=False)
    found = {"text": b"a red disc", "texts": b"a blue disc"}[column]
    path.write_bytes(path.read_bytes().replace(found, b"\xe2" + found[1:]))
    with pytest.raises(VirtueError, match=r"rows\.parquet is no parquet file, or a damaged one"):
        list(grouped_rows(path, ["text", "texts"], ["text"], seed=0))


def test_a_columns_name_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"caption": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"caption", b"capt\xe2on"))
    with pytest.raises(VirtueError, match=r"rows\.parquet is no parquet file, or a damaged one"):
        column_names(path)
