"""An index that is built, and searched, on two nodes of Ray is the desk's, also where one of them is killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fixtures.ray_cluster import read_notes
from virtue_pl.cluster import RayOptions
from virtue_pl.search import (
    EncodedRow,
    EncodingFacts,
    IndexOptions,
    RayBuilder,
    VectorIndex,
    row_schema,
    search_on_ray,
    to_table,
)
from virtue_pl.types import VirtueError

pytestmark = pytest.mark.ray

DIM = 16


def write_vectors(folder: Path) -> None:
    """Write 2,000 random vectors, as four parts of an encoding."""
    facts = EncodingFacts("0a1b", "runs/quickstart", DIM)
    vectors = np.random.default_rng(0).normal(size=(2000, DIM)).astype(np.float32)
    folder.mkdir()
    for part in range(4):
        rows = [EncodedRow(f"{n}.jpg", f"{n}.jpg", vectors[n]) for n in range(500 * part, 500 * part + 500)]
        pq.write_table(to_table(rows, row_schema(facts)), folder / f"part-{part:06d}.parquet")


@pytest.mark.parametrize("kind", ["ivf_rq", "hnsw_sq"])
def test_an_index_that_is_built_in_segments(ray_nodes, tmp_path, kind):
    write_vectors(tmp_path / "rows")
    options = IndexOptions(kind, queries=20)
    builder = RayBuilder(RayOptions(actors=2))
    index = VectorIndex.build(tmp_path / "rows", tmp_path / "index", options, builder=builder)
    desk = VectorIndex.build(tmp_path / "rows", tmp_path / "desk", IndexOptions("exact"))
    assert index.settings.kind == kind and index.problems() == [] and index.settings.recall >= 0.9
    assert index.facts == desk.facts and index.table.to_arrow().equals(desk.table.to_arrow())
    queries = np.random.default_rng(1).normal(size=(300, DIM)).astype(np.float32)
    expected = desk.search(queries)
    assert index.search(queries, exact=True) == expected
    near = zip(index.search(queries), expected, strict=True)
    assert np.mean([len({hit.id for hit in hits} & {hit.id for hit in best}) for hits, best in near]) >= 9
    assert search_on_ray(index, queries, exact=True) == expected
    # rows of a Lance table as source
    again = VectorIndex.build(tmp_path / "index", tmp_path / "again", IndexOptions("exact"), builder=builder)
    assert again.search(queries[:3]) == expected[:3]


@pytest.mark.parametrize(("stage", "tasks"), [("writing", 4), ("building", 2)])
def test_a_killed_node_costs_an_index_nothing(ray_nodes, tmp_path, stage, tasks):
    """One of two nodes is killed while both read rows, or while both index segments."""
    from fixtures.noting_index import NOTES, KillingBuilder

    ray_nodes.start_second()
    write_vectors(tmp_path / "rows")
    builder = KillingBuilder(RayOptions(actors=2), ray_nodes, tmp_path, stage)
    options = IndexOptions("ivf_rq", queries=20)
    index = VectorIndex.build(tmp_path / "rows", tmp_path / "index", options, builder=builder)
    assert ray_nodes.second is None and read_notes(tmp_path / NOTES).total() > tasks, "what it was at was done again"
    desk = VectorIndex.build(tmp_path / "rows", tmp_path / "desk", IndexOptions("exact"))
    assert index.problems() == [] and index.settings.recall >= 0.9
    assert index.table.to_arrow().equals(desk.table.to_arrow())


def test_rows_that_cannot_be_indexed_are_one_line(ray_nodes, tmp_path):
    rows = [EncodedRow("a", "a", np.zeros(DIM, np.float32))]
    pq.write_table(to_table(rows, row_schema(EncodingFacts("0a1b", "m", DIM))), tmp_path / "zero.parquet")
    with pytest.raises(VirtueError, match=r"^\S*zero.parquet: the vector of row 'a' is missing, zero or not finite"):
        VectorIndex.build(tmp_path / "zero.parquet", tmp_path / "index", builder=RayBuilder())
    assert not (tmp_path / "index").exists()
