"""The index: exact below a size, approximate above it with its recall, whole or absent, and of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.index import IvfFlat, IvfRq

from virtue_pl.search import EncodedRow, EncodingFacts, IndexOptions, VectorIndex, building, row_schema, to_table
from virtue_pl.search import index as index_module
from virtue_pl.search.row_files import RowFiles
from virtue_pl.types import VirtueError

DIM = 16
FACTS = EncodingFacts("0a1b" * 8, "runs/quickstart", DIM, versions={"torch": "0.1"})


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_rows(path: Path, count: int, start: int = 0, facts: EncodingFacts = FACTS, **columns: Any) -> np.ndarray:
    """Write rows of random vectors as `virtue-pl encode` does, two regions of each image; return the vectors."""
    vectors = unit_vectors(count, start)
    rows = [
        EncodedRow(
            f"{n // 2}.jpg#{n % 2}",
            f"{n // 2}.jpg",
            vector,
            f"{n // 2}.jpg",
            region=n % 2,
            box=(0.0, 0.25, 0.5, 1.0),
            columns={"year": n % 100},
        )
        for n, vector in enumerate(vectors, start)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(rows, row_schema(facts, {"year": pa.int64(), **columns})), path)
    return vectors


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorIndex, np.ndarray]:
    folder = tmp_path_factory.mktemp("exact")
    parts = [write_rows(folder / "rows" / f"part-{n}.parquet", 150, 150 * n) for n in range(2)]
    return VectorIndex.build(folder / "rows", folder / "index"), np.concatenate(parts)


@pytest.fixture(scope="module")
def approximate(tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorIndex, np.ndarray]:
    folder = tmp_path_factory.mktemp("approximate")
    vectors = write_rows(folder / "rows.parquet", 2000)
    options = IndexOptions(exact_below=1000, queries=20)
    return VectorIndex.build(folder / "rows.parquet", folder / "index", options), vectors


def test_the_nearest_rows_are_those_of_a_literal_comparison(exact):
    index, vectors = exact
    queries = unit_vectors(5, 77)
    found = index.search(queries, top=4)
    for query, hits in zip(queries, found, strict=True):
        scores = vectors @ query
        best = np.argsort(-scores)[:4]
        assert [hit.id for hit in hits] == [f"{n // 2}.jpg#{n % 2}" for n in best]
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    first = found[0][0]
    assert first.name == first.id and first.box == (0.0, 0.25, 0.5, 1.0) and set(first.columns) == {"year"}
    assert index.search(queries[0], top=4) == found[:1] and index.search(queries, top=4, exact=True) == found


def test_approximate_hits_have_their_true_scores_and_are_mostly_the_nearest(approximate):
    """LanceDB draws its centres without a seed: which hits are missed differs from run to run."""
    index, vectors = approximate
    queries = unit_vectors(30, 77)
    right = 0
    for query, hits in zip(queries, index.search(queries), strict=True):
        scores = vectors @ query
        numbers = [2 * int(hit.document.removesuffix(".jpg")) + hit.region for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], scores[numbers], atol=1e-5)
        right += len(set(numbers) & set(np.argsort(-scores)[:10].tolist()))
    assert right >= 0.9 * 300
    exact_hits = index.search(queries, exact=True)
    assert [hit.score for hit in exact_hits[0]] == pytest.approx(np.sort(vectors @ queries[0])[::-1][:10], abs=1e-5)


def test_an_index_is_exact_below_a_size_and_says_its_recall_above(exact, approximate):
    assert exact[0].settings.kind == "exact" and exact[0].settings.recall is None and len(exact[0]) == 300
    settings = approximate[0].settings
    assert settings.kind == "ivf_sq" and settings.queries == 20 and 0.97 <= settings.recall <= 1
    assert approximate[0].problems() == [] == exact[0].problems()


@pytest.mark.parametrize("kind", ["ivf_rq", "ivf_pq", "hnsw_sq"])
def test_the_other_kinds(kind, tmp_path):
    vectors = write_rows(tmp_path / "rows.parquet", 600)
    index = VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index", IndexOptions(kind, queries=10))
    assert index.settings.kind == kind and index.settings.recall > 0.9 and index.problems() == []
    assert index.search(vectors[7], top=1)[0][0].id == "3.jpg#1"


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_filters_leave_no_hit_out(kind, request):
    index, vectors = request.getfixturevalue(kind)
    (hits,) = index.search(vectors[0], top=5, where="year = 7 AND region = 1")
    numbers = [n for n in range(len(vectors)) if n % 100 == 7]
    best = sorted(numbers, key=lambda n: -float(vectors[n] @ vectors[0]))[:5]
    assert [hit.id for hit in hits] == [f"{n // 2}.jpg#{n % 2}" for n in best]
    assert index.search(vectors[0], where="year > 100") == [[]]


def test_more_hits_than_a_search_looks_at_are_all_there(approximate):
    index, vectors = approximate
    (hits,) = index.search(vectors[0], top=1990)
    scores = np.sort(vectors @ vectors[0])[::-1]
    assert [hit.score for hit in hits] == pytest.approx(scores[:1990], abs=1e-5)
    assert len(index.search(vectors[0], top=3000)[0]) == 2000


def test_recall_is_measured_against_every_row(approximate):
    """The bounds of one pass in batches are those of a literal product, and a search that finds nothing has 0."""
    index, vectors = approximate
    queries = building.draw_queries(index.table, 20, 0)
    bounds = building.exact_bounds(index.table, queries, 11)
    np.testing.assert_allclose(bounds, np.sort(queries @ vectors.T, axis=1)[:, -11], atol=1e-6)
    assert building.measure_recall(index.table, queries, bounds + 3, index.settings) == 0
    assert building.measure_recall(index.table, queries, bounds * 0 + 0.999, index.settings) == 0, "none but itself"
    everything = index.settings.changed(probes=index.settings.partitions, refine=80)
    assert building.measure_recall(index.table, queries, bounds, everything) == 1


def test_searches_widen_until_the_recall_is_reached(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.parquet", 2000)
    monkeypatch.setattr(building, "measure_recall", lambda *arguments: 0.5)
    index = VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index", IndexOptions("ivf_rq", queries=5))
    settings = index.settings
    assert (settings.probes, settings.partitions, settings.refine, settings.recall) == (45, 45, 80, 0.5)


def test_a_lance_table_is_indexed_like_its_parquet_files(exact, tmp_path):
    index = exact[0]
    again = VectorIndex.build(Path(index.uri) / "rows.lance", tmp_path / "index")
    assert again.search(unit_vectors(2, 5), top=3) == index.search(unit_vectors(2, 5), top=3)


def test_an_unfinished_index_is_refused(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.parquet", 300)
    monkeypatch.setattr(index_module, "build_ann", lambda *arguments: (_ for _ in ()).throw(RuntimeError("disk full")))
    with pytest.raises(VirtueError, match="disk full"):
        VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    table = building.write_rows(RowFiles.open(str(tmp_path / "rows.parquet")), str(tmp_path / "i"), {}, False, print)
    assert table.count_rows() == 300
    with pytest.raises(VirtueError, match="never finished: build it again"):
        VectorIndex.open(tmp_path / "i")


def broken_index(folder: Path, kind: str = "ivf_sq") -> VectorIndex:
    write_rows(folder / "rows.parquet", 400)
    return VectorIndex.build(folder / "rows.parquet", folder / "index", IndexOptions(kind, queries=5))


def test_a_stale_index_is_said_by_whoever_searches_first(tmp_path):
    index = broken_index(tmp_path)
    vector = unit_vectors(1, 99)[0]
    row = to_table([EncodedRow("new", "new", vector, columns={"year": 1})], row_schema(FACTS, {"year": pa.int64()}))
    index.table.add(row)
    with pytest.warns(UserWarning, match=r"1 of 401 rows .* are not in its ivf_sq index .*: build it again"):
        assert index.search(vector, top=1)[0][0].id == "new"
    assert index.search(vector, top=1)[0][0].id == "new", "said once"
    index.table.update("id = '3.jpg#1'", {"year": 1900})
    assert "2 of 401 rows" in index.problems()[0] and "build it again" in index.problems()[0]
    assert index.search(unit_vectors(400)[7], top=1)[0][0].id == "3.jpg#1"
    again = VectorIndex.open(index.uri)
    index.table.delete("year > 90 AND year < 1000")
    assert len(index.problems()) == 1
    assert all(hit.columns["year"] <= 90 for hit in index.search(vector, top=300)[0])
    assert len(again.problems()) == 1, "a table that was opened stays as it was"


def test_a_lost_index_is_refused(tmp_path):
    index = broken_index(tmp_path)
    index.table.drop_index(index.table.list_indices()[0].name)
    vector = unit_vectors(400)[7]
    for opened in (index, VectorIndex.open(index.uri)):
        with pytest.raises(VirtueError, match=r"has lost its ivf_sq index: .* or search every row with --exact"):
            opened.search(vector)
        assert opened.search(vector, top=1, exact=True)[0][0].id == "3.jpg#1"


@pytest.mark.parametrize("config", [IvfFlat(distance_type="l2", num_partitions=4), IvfRq(distance_type="cosine")])
def test_an_index_of_another_kind_is_refused(tmp_path, config):
    """LanceDB compares every row where the distance is another one, and the recall is not that of another kind."""
    index = broken_index(tmp_path)
    index.table.create_index("vector", config=config, replace=True)
    with pytest.raises(VirtueError, match=r"index of another kind, IVF_\w+ by \w+, expected its own ivf_sq by cosine"):
        VectorIndex.open(index.uri).search(unit_vectors(1))


@pytest.mark.parametrize("file", ["index.idx", "auxiliary.idx"])
@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_a_damaged_index_is_one_line(tmp_path, file, how):
    index = broken_index(tmp_path)
    (path,) = Path(index.uri).rglob(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if how == "gone":
        path.unlink()
    vector = unit_vectors(400)[7]
    for where in (None, "year < 50"):
        with pytest.raises(VirtueError, match=r"damaged\? Build it again with --replace, or search every") as caught:
            VectorIndex.open(index.uri).search(vector, where=where)
        assert "\n" not in str(caught.value) and ".rs:" not in str(caught.value)
    assert VectorIndex.open(index.uri).search(vector, top=1, exact=True)[0][0].id == "3.jpg#1"


def test_damaged_rows_are_one_line(tmp_path):
    write_rows(tmp_path / "rows.parquet", 30)
    index = VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index")
    for path in (Path(index.uri) / "rows.lance" / "data").iterdir():
        path.unlink()
    with pytest.raises(VirtueError, match=r"Not found: .* is it damaged\? Build it again with --replace$"):
        VectorIndex.open(index.uri).search(unit_vectors(1))


def test_an_index_is_replaced_only_where_that_is_said(tmp_path):
    write_rows(tmp_path / "rows.parquet", 20)
    VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index")
    with pytest.raises(VirtueError, match="is there already: give another --out, or --replace"):
        VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index")
    write_rows(tmp_path / "rows.parquet", 30)
    assert len(VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index", replace=True)) == 30
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(VirtueError, match="photos is no index"):
        VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "photos", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos", "rows.parquet"]


def test_an_index_at_a_uri_is_written_there(tmp_path):
    """Object storage has no renaming; a URI of this machine goes the same way."""
    write_rows(tmp_path / "rows.parquet", 20)
    uri = f"file://{tmp_path}/index"
    assert VectorIndex.build(f"file://{tmp_path}/rows.parquet", uri).search(np.ones(DIM), top=3)[0][2].rank == 3
    with pytest.raises(VirtueError, match="is there already"):
        VectorIndex.build(tmp_path / "rows.parquet", uri)
    write_rows(tmp_path / "rows.parquet", 30)
    assert len(VectorIndex.build(tmp_path / "rows.parquet", uri, replace=True)) == 30
    with pytest.raises(VirtueError, match="there is no table 'rows'"):
        VectorIndex.open(f"file://{tmp_path}/other")


def test_another_model_or_length_is_one_line(exact):
    index = exact[0]
    index.check_query_model(FACTS.fingerprint, DIM)
    index.check_query_model(FACTS.fingerprint, 2 * DIM)
    with pytest.raises(VirtueError, match=r"was encoded by runs/quickstart .* is another model .*torch 0\.1, here 2"):
        index.check_query_model("ffff", DIM)
    with pytest.raises(VirtueError, match="gives embeddings of 8 numbers"):
        index.check_query_model(FACTS.fingerprint, 8)
    with pytest.raises(VirtueError, match="queries of 3 numbers, expected 16"):
        index.search(np.ones(3))
    with pytest.raises(VirtueError, match="top is 0"):
        index.search(np.ones(DIM), top=0)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("yaer > 3", "where: .* has no column 'yaer'; did you mean 'year'?"),
        ("brightness > 3", "has no column 'brightness'; there are id, document"),
        ("year >", "where: 'year >' is no condition that can be read"),
    ],
)
def test_a_wrong_condition_is_one_line(exact, where, said):
    with pytest.raises(VirtueError, match=said):
        exact[0].search(np.ones(DIM), where=where)


def test_wrong_rows_are_one_line(tmp_path):
    def build(name: str) -> None:
        VectorIndex.build(tmp_path / name, tmp_path / "index")

    with pytest.raises(VirtueError, match="there are no encoded rows"):
        build("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VirtueError, match=r"there is no \.parquet file in it"):
        build("empty")
    pq.write_table(row_schema(FACTS).empty_table(), tmp_path / "none.parquet")
    with pytest.raises(VirtueError, match="there are no rows to index"):
        build("none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(VirtueError, match="is no Parquet file that can be read"):
        build("text.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(VirtueError, match="does not say by which model"):
        build("other.parquet")
    write_rows(tmp_path / "two" / "a.parquet", 4)
    write_rows(tmp_path / "two" / "b.parquet", 4, facts=EncodingFacts("ffff", "runs/other", DIM))
    with pytest.raises(VirtueError, match=r"b\.parquet is of another encoding than .*a\.parquet: its fingerprint"):
        build("two")
    write_rows(tmp_path / "columns" / "a.parquet", 4)
    write_rows(tmp_path / "columns" / "b.parquet", 4, place=pa.string())
    with pytest.raises(VirtueError, match=r"b\.parquet has other columns"):
        build("columns")
    rows = [EncodedRow("a", "a", np.zeros(DIM, np.float32))]
    pq.write_table(to_table(rows, row_schema(FACTS)), tmp_path / "zero.parquet")
    with pytest.raises(VirtueError, match="the vector of row 'a' is missing, zero or not finite"):
        build("zero.parquet")
    assert not (tmp_path / "index").exists()
    with pytest.raises(VirtueError, match="there is no index"):
        VectorIndex.open(tmp_path / "empty")
    with pytest.raises(VirtueError, match="kind is 'best'"):
        IndexOptions("best")
