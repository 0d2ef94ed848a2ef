"""The client of a running server: what its answers and its refusals become. The server itself: test_index_search.py."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from virtue_pl.search import Hit, SearchServer
from virtue_pl.search.server_client import name_line, read_hit, send_images
from virtue_pl.types import VirtueError

HIT = {"rank": 1, "score": 0.5, "id": "a#0", "document": "a", "box": [0, 0, 1, 1], "region": 0, "later": 3}
ANSWER = {"index": "index", "encoded_by": "mini", "data": [{"hits": [HIT]}], "problems": ["stale"]}


@pytest.fixture
def answering():
    """`answering(status, content)` is the URL of a server that gives this one answer; its requests are noted."""
    servers, requests = [], []

    def start(status: int, content: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    start.requests = requests
    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_search_sends_the_schema_and_reads_the_hits(answering, tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    url = answering(200, json.dumps(ANSWER).encode())
    server = SearchServer(f"{url}/v1/", key="0123456789abcdef")
    reply = server.search([{"image": str(tmp_path / "a.png"), "text": "who?"}], 3, "year > 2020", exact=True)
    ((path, headers, body),) = answering.requests
    assert path == "/v1/search" and headers["Authorization"] == "Bearer 0123456789abcdef"
    assert body == {
        "query": [{"image": "data:image;base64,cG5n", "text": "who?"}],
        "k": 3,
        "exact": True,
        "filter": "year > 2020",
    }
    assert (reply.index, reply.model, list(reply.problems)) == ("index", "mini", ["stale"])
    hit = Hit(1, 0.5, "a#0", "a", box=(0, 0, 1, 1), region=0)
    assert reply.answers == [(0, None, [hit])] and read_hit(HIT) == hit


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (200, b"<html>", "answers 200"),
        (200, b"[]", "answers 200"),
        (200, b"{}", "gave an answer that cannot be read"),
        (200, json.dumps({**ANSWER, "data": []}).encode(), r"0 answers for 1 queries"),
        (404, b'{"error": {"message": "Not Found"}}', "searches no index: start `virtue-pl serve` with --index"),
        (401, b'{"error": {"message": "the key is missing"}}', "the key is missing; set VIRTUE_API_KEY"),
        (422, b'{"error": {"message": "k: found 0"}}', "^k: found 0$"),
        (429, b'{"error": {"message": "the queue is full"}}', "answers 429: the queue is full"),
        (500, b"oops", "answers 500$"),
        (302, b"", "answers 302$"),
    ],
)
def test_refusals_are_one_line(answering, status, content, said):
    with pytest.raises(VirtueError, match=said):
        SearchServer(answering(status, content)).search([{"text": "a"}])


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://here", "http://", "http://[::1", "http://a:b", "http://me@here", "", "file:///x"]
)
def test_what_is_no_url(url):
    with pytest.raises(VirtueError, match="--server: found"):
        SearchServer(url)


def test_nobody_answers_or_not_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(VirtueError, match=r"did not answer in 0\.2 seconds"):
            SearchServer(f"http://127.0.0.1:{port}", seconds=0.2).search([{"text": "a"}])
    with pytest.raises(VirtueError, match=r"no server answers .* expected `virtue-pl serve` with --index"):
        SearchServer(f"http://127.0.0.1:{port}").search([{"text": "a"}])


def test_images_are_sent_and_urls_stay(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    given = {"image": [tmp_path / "a.png", "https://example.org/b.png", "data:image/png;base64,AA=="]}
    assert send_images(given)["image"] == ["data:image;base64,cG5n", *given["image"][1:]]
    assert send_images({"text": "a"}) == {"text": "a"}
    with pytest.raises(VirtueError, match=r"there is no image .*none\.png"):
        send_images({"image": tmp_path / "none.png"})


def test_a_line_about_a_query_names_the_line_of_its_file():
    assert name_line("query.1.box: found 3", "a.jsonl", [1, 4]) == "a.jsonl, line 4: box: found 3"
    assert name_line("query.0: is empty", "", ()) == "is empty"
    assert name_line("regions.0: outside", "a.jsonl", [2]) == "a.jsonl, line 2: regions.0: outside"
    assert name_line("filter: no column", "a.jsonl", [1, 2]) == "filter: no column"
