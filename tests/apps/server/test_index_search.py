"""Search over HTTP: by text, image and region; what is wrong with an index is said; one that is rebuilt is reopened."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.generated_requests import call_operations
from fixtures.running_server import serving
from fixtures.search_files import BOXES, SearchFiles, make_search_files
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.apps.server.index_search import SearchIndex, plain_value, search_routes
from virtue_pl.apps.server.options import Limits, ServerOptions
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.cli.commands.serve import make_routers
from virtue_pl.embedder import Embedder
from virtue_pl.search import EncodedRow, EncodingFacts, VectorIndex, row_schema, to_table
from virtue_pl.search.server_client import send_image
from virtue_pl.types import VirtueError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> SearchFiles:
    return make_search_files(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def searcher(files) -> Embedder:
    return Embedder.from_pretrained(files.model, device="cpu")


@contextmanager
def searching(embedder, uri, options=None):
    """A server with an index."""
    index = SearchIndex(str(uri))
    index.check(embedder)
    with serving(lambda: embedder, options, make_routers=lambda service: make_routers(service, index)) as running:
        yield running


@pytest.fixture(scope="module")
def server(files, searcher):
    with searching(searcher, files.index) as running:
        yield running


def hits(response, number=0):
    assert response.status_code == 200, response.text
    return response.json()["data"][number]["hits"]


def test_a_region_an_image_and_a_text(server, files, searcher):
    image = send_image(files.images / "1.png")
    found = server.post("/v1/search", {"query": {"image": image, "regions": [{"box": BOXES[1]}]}, "k": 3})
    assert [hit["rank"] for hit in hits(found)] == [1, 2, 3]
    first = hits(found)[0]
    assert first["id"] == "1.png#1" and first["score"] == pytest.approx(1, abs=1e-5) and first["image"] == "1.png"
    assert first["box"] == pytest.approx([1 / 3, 1 / 6, 8 / 9, 11 / 12], abs=1e-6) and first["quality"] == 0.75
    assert found.json()["index"] == "index" and found.json()["encoded_by"] == "model"
    assert found.json()["usage"]["prompt_tokens"] > 0 and "problems" not in found.json()
    assert hits(server.post("/v1/search", {"query": image}))[0]["id"] == "1.png"
    texts = hits(server.post("/v1/search", {"query": "a cat", "k": 9}))
    own = VectorIndex.open(files.index).search(searcher.encode("a cat"), 9)[0]
    assert [hit["id"] for hit in texts] == [hit.id for hit in own]


def test_several_queries_and_one_for_each_region(server, files):
    request = {
        "image": send_image(files.images / "0.png"),
        "regions": [{"box": box} for box in BOXES],
        "regions_as": "each",
    }
    reply = server.post("/v1/search", {"query": ["a cat", request], "k": 1})
    assert [answer["hits"][0]["id"] for answer in reply.json()["data"][1:]] == ["0.png#0", "0.png#1"]
    assert [answer.get("region", {}).get("index") for answer in reply.json()["data"]] == [None, 0, 1]


def test_filters_and_exact_search(server, files):
    query = {"query": send_image(files.images / "1.png"), "filter": "year = 2022 AND quality > 0.6"}
    assert [hit["id"] for hit in hits(server.post("/v1/search", query))] == ["2.png#1"]
    assert hits(server.post("/v1/search", {**query, "filter": "year > 3000"})) == []
    assert [hit["id"] for hit in hits(server.post("/v1/search", {**query, "exact": True}))] == ["2.png#1"]


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "query: is missing", "query"),
        ({"query": []}, "query: found [], expected a text, a request, or a list of them", "query"),
        ({"query": 3}, "query: found 3", "query"),
        ({"query": ["a", {"txet": "b"}]}, "query.1: 'txet' is no key", "query.1.txet"),
        ({"query": ["a", ""]}, "query.1: a request is empty", "query.1"),
        ({"query": ["a", {"image": "no.png"}]}, "query.1.image: found a path ('no.png')", "query.1.image"),
        ({"query": "a", "k": 0}, "k: found 0", "k"),
        ({"query": "a", "k": -3}, "k: found -3", "k"),
        ({"query": "a", "k": 10**30}, "k: found", "k"),
        ({"query": "a", "k": 10_001}, "k: found 10,001 hits for each of 1 queries, expected at most 10,000", "k"),
        ({"query": "a", "k": 2.5}, "k: found 2.5", "k"),
        ({"query": "a", "filter": "yaer = 3"}, "filter: ", "filter"),
        ({"query": "a", "filter": "year ="}, "filter: ", "filter"),
        ({"query": "a", "filter": ""}, "filter: found ''", "filter"),
        ({"query": "a", "filter": "x" * 3000}, "filter: ", "filter"),
        ({"query": "a", "exact": 1}, "exact: found 1", "exact"),
        ({"query": "a", "top": 3}, "'top' is no key", "top"),
        ({"query": "a", "model": "gpt"}, "model: found 'gpt'", "model"),
    ],
)
def test_mistakes_name_their_key(server, body, message, param):
    response = server.post("/v1/search", body)
    assert response.status_code == (404 if "model" in body else 422), response.text
    error = response.json()["error"]
    assert message in error["message"] and error["param"] == param and "\n" not in error["message"]


def test_hostile_filters_end_in_no_server_error(server):
    nested, negated = "(" * 900 + "year = 1" + ")" * 900, "NOT " * 480 + "year = 1"
    chained = " OR ".join(["year=1"] * 190)
    odd = ["1; DROP TABLE rows", "year = 1 --", "vector = 1", "year / 0 = 1", "'a' LIKE year", "\0", "id IN (SELECT 1)"]
    for condition in (nested, negated, chained, *odd, "regexp_like(id, '(a+)+$')", "read_csv('/etc/passwd')"):
        response = server.post("/v1/search", {"query": "a", "filter": condition})
        assert response.status_code in (200, 422), (condition[:40], response.text)
    assert hits(server.post("/v1/search", {"query": "a", "k": 1}))


def test_schemathesis_finds_no_server_error(server):
    statuses = call_operations(server.url, "/v1/search")
    assert len(statuses) >= 20 and max(statuses) < 500


def test_the_index_is_described(server):
    found = server.client.get("/v1/index").json()
    assert found["rows"] == 9 and found["columns"] == ["year"] and found["kind"] == "exact"


def test_without_an_index_there_is_no_route(searcher):
    with serving(lambda: searcher) as running:
        assert running.post("/v1/search", {"query": "a"}).status_code == 404


def test_an_index_of_another_model_an_empty_one_and_none_are_refused(files, tmp_path):
    other = from_pretrained(run_checkpoint(tmp_path / "run", quickstart_spec(tmp_path), seed=1))
    with pytest.raises(VirtueError, match="and the server's model is another model"):
        SearchIndex(str(files.index)).check(Embedder(other))
    shutil.copytree(files.index, tmp_path / "index")
    VectorIndex.open(tmp_path / "index").table.delete("true")
    with pytest.raises(VirtueError, match="is empty, expected an index with rows: build it again"):
        SearchIndex(str(tmp_path / "index"))
    with pytest.raises(VirtueError, match="there is no index"):
        SearchIndex(str(tmp_path / "missing"))


def write_odd_rows(searcher, path):
    """Rows whose columns JSON cannot hold as they are."""
    facts = EncodingFacts(searcher.fingerprint(), "runs/odd", searcher.embed_dim, documents="texts")
    columns = {"price": pa.float64(), "day": pa.date32(), "raw": pa.binary()}
    rows = [
        EncodedRow(text, text, vector, text=text, columns={"price": price, "day": date(2026, 12, 1), "raw": b"ab"})
        for text, vector, price in zip("ab", searcher.encode(["a", "b"]), (float("nan"), float("inf")), strict=True)
    ]
    pq.write_table(to_table(rows, row_schema(facts, columns)), path)
    return path


def test_an_index_that_is_built_again_is_opened_again(files, searcher, tmp_path):
    """Also its columns that are no JSON; while it is gone or cannot be searched, the server says so."""
    shutil.copytree(files.index, tmp_path / "index")
    odd = write_odd_rows(searcher, tmp_path / "odd.parquet")
    with searching(searcher, tmp_path / "index") as running:
        assert len(hits(running.post("/v1/search", {"query": "a"}))) == 9
        VectorIndex.build(odd, tmp_path / "index", replace=True)
        reply = running.post("/v1/search", {"query": "a"})
        assert [hit["text"] for hit in hits(reply)] == ["a", "b"] and reply.json()["encoded_by"] == "odd"
        assert hits(reply)[0]["columns"] == {"price": None, "day": "2026-12-01", "raw": "YWI="}
        VectorIndex.open(tmp_path / "index").table.delete("id = 'b'")
        assert [hit["text"] for hit in hits(running.post("/v1/search", {"query": "a"}))] == ["a"]
        shutil.rmtree(tmp_path / "index")
        gone = running.post("/v1/search", {"query": "a"})
        assert gone.status_code == 503 and "the index index has changed, and cannot be searched" in gone.text
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200
        VectorIndex.build(odd, tmp_path / "index")
        assert len(hits(running.post("/v1/search", {"query": "a"}))) == 2


def test_shortened_vectors_are_searched_by_as_many_numbers(searcher, tmp_path):
    facts = EncodingFacts(searcher.fingerprint(), "short", 8, documents="texts")
    vectors = searcher.encode(["a", "b"], truncate_dim=8)
    rows = [EncodedRow(text, text, vector, text=text) for text, vector in zip("ab", vectors, strict=True)]
    pq.write_table(to_table(rows, row_schema(facts)), tmp_path / "rows.parquet")
    VectorIndex.build(tmp_path / "rows.parquet", tmp_path / "index")
    with searching(searcher, tmp_path / "index", ServerOptions(limits=Limits(hits=2))) as running:
        first = hits(running.post("/v1/search", {"query": "b", "k": 1}))[0]
        assert first["text"] == "b" and first["score"] == pytest.approx(1, abs=1e-5)
        both = running.post("/v1/search", {"query": ["a", "b"], "k": 2})
        assert both.status_code == 422 and "2 hits for each of 2 queries" in both.text


def test_values_of_columns_are_plain():
    assert plain_value({"a": [1, 2.5, None, np.float32(1), True]}) == {"a": [1, 2.5, None, "1.0", True]}
    assert json.dumps(plain_value([float("-inf"), b"\0"])) == '[null, "AA=="]'


def test_routes_come_with_an_index_alone():
    assert make_routers(None, None) == () and callable(search_routes)
