"""Encoded rows: what is written is what is read, and says by which model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from virtue_pl.search.rows import EncodedRow, EncodingFacts, row_schema, to_table
from virtue_pl.types import VirtueError

FACTS = EncodingFacts("0a1b", "runs/quickstart", 4, "Find the caption.", "regions", {"torch": "2"})


def test_rows_and_facts_come_back_from_a_file(tmp_path):
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    rows = [
        EncodedRow("a.jpg", "a.jpg", vectors[0], "a.jpg", columns={"year": 2026}),
        EncodedRow("a.jpg#0", "a.jpg", vectors[1], "a.jpg", None, 0, (0.0, 0.25, 0.5, 1.0), "{}", 0.5),
    ]
    table = to_table(rows, row_schema(FACTS, {"year": pa.int64()}))
    pq.write_table(table, tmp_path / "rows.parquet")
    found = pq.read_table(tmp_path / "rows.parquet")
    assert found.equals(table) and EncodingFacts.from_schema(found.schema, "rows.parquet") == FACTS
    assert found["box"].to_pylist() == [None, [0.0, 0.25, 0.5, 1.0]] and found["year"].to_pylist() == [2026, None]
    np.testing.assert_array_equal(np.stack(found["vector"].to_numpy(zero_copy_only=False)), vectors)
    assert len(to_table([], row_schema(FACTS))) == 0


def test_mistakes_are_one_line():
    with pytest.raises(VirtueError, match="a column 'box', a name of the index's own"):
        row_schema(FACTS, {"box": pa.int64()})
    with pytest.raises(VirtueError, match="does not say by which model"):
        EncodingFacts.from_schema(pa.schema([("vector", pa.float32())]), "rows.parquet")
