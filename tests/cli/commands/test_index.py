"""`virtue-pl index`: what it prints of an index, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from virtue_pl.cli.main import main
from virtue_pl.search import EncodedRow, EncodingFacts, row_schema, to_table

DIM = 16


@pytest.fixture
def rows(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float32)
    facts = EncodingFacts("0a1b" * 8, "runs/quickstart", DIM)
    table = to_table([EncodedRow(str(n), str(n), vector) for n, vector in enumerate(vectors)], row_schema(facts))
    pq.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_few_rows_are_searched_exactly(rows, tmp_path, capsys):
    assert main(["index", str(rows), "--out", str(tmp_path / "index")]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'index'}: 600 images of 16 numbers, 0.")
    assert second.startswith("encoded by runs/quickstart (0a1b0a1b0a1b); indexed in ")
    assert third == "searched exactly: every row is compared"


def test_the_recall_of_many_is_printed(rows, tmp_path, capsys):
    options = ["--exact-below", "100", "--queries", "20", "--storage-option", "timeout=5s"]
    assert main(["index", str(rows), "--out", str(tmp_path / "index"), *options]) == 0
    assert "searched by ivf_sq: recall@10 " in capsys.readouterr().out
    options = ["--kind", "hnsw_sq", "--queries", "20", "--replace", "--json", "--recall", "1"]
    assert main(["index", str(rows), "--out", str(tmp_path / "index"), *options]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["kind"] == "hnsw_sq" and found["rows"] == 600 and found["queries"] == 20 and found["bytes"] > 600 * 64
    assert ("below --recall 1" in captured.err) == (found["recall@10"] < 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no.parquet", "--out", "index"], 1, "there are no encoded rows no.parquet"),
        (["ROWS"], 2, "the following arguments are required: --out"),
        (["ROWS", "--out", "index", "--kind", "best"], 2, "invalid choice: 'best'"),
        (["ROWS", "--out", "index", "--recall", "2"], 2, "expected a share from 0 to 1"),
        (["ROWS", "--out", "index", "--exact-below", "-1"], 1, "exact_below is -1"),
        (["ROWS", "--out", "ROWS"], 1, "is no index"),
    ],
)
def test_a_mistake_is_one_line(rows, tmp_path, capsys, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert main(["index", *(str(rows) if word == "ROWS" else word for word in arguments)]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
