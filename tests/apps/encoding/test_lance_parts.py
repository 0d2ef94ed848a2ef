"""Parts in a Lance table: a line counts once its commit is there, and what has no line is refused."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest

from virtue_pl.apps.encoding.lance_parts import JOURNAL, LanceParts
from virtue_pl.apps.encoding.parts import PartFacts
from virtue_pl.search import EncodedRow, EncodingFacts, row_schema
from virtue_pl.types import VirtueError

SCHEMA = row_schema(EncodingFacts("0a1b", "run", 4))


def row(name: str) -> EncodedRow:
    return EncodedRow(name, name, np.ones(4, dtype=np.float32), name)


def test_a_line_without_its_commit_does_not_count(tmp_path):
    parts = LanceParts(tmp_path, SCHEMA)
    assert parts.written() == {}
    parts.write(0, PartFacts(2, 2), [row("a"), row("b")])
    nothing = PartFacts(1, 0, (("c", "damaged image: 0 bytes"),))
    parts.write(1, nothing, [])
    before = (tmp_path / JOURNAL).read_text()
    line = json.dumps({"documents": 2, "rows": 2, "left_out": [], "total": 4})
    (tmp_path / JOURNAL).write_text(before + line + "\n" + line[:20])
    again = LanceParts(tmp_path, SCHEMA)
    assert again.written() == {0: PartFacts(2, 2), 1: nothing}
    assert (tmp_path / JOURNAL).read_text() == before
    again.write(2, PartFacts(1, 1), [row("d")])
    assert [part.documents for part in LanceParts(tmp_path, SCHEMA).written().values()] == [2, 1, 1]


def test_rows_of_no_part_are_refused(tmp_path):
    parts = LanceParts(tmp_path, SCHEMA)
    parts.write(0, PartFacts(1, 1), [row("a")])
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(VirtueError, match="the table has 1 rows, of which _parts"):
        LanceParts(tmp_path, SCHEMA).written()
    (tmp_path / JOURNAL).write_text("[]\n")
    with pytest.raises(VirtueError, match="is damaged"):
        LanceParts(tmp_path, SCHEMA).written()


def test_without_lancedb_the_extra_is_named(tmp_path, monkeypatch):
    load = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "lancedb":
            raise ImportError(name)
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(VirtueError, match=r"virtue-pl\[search\]"):
        LanceParts(tmp_path, SCHEMA)
