"""Refusals: malformed bodies, wrong keys, too much at a time, and anything while the server stops."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import numpy as np
import pytest

from fixtures.running_server import BOX, PIXELS, POINTS, URI, image_part, messages, png_uri, serving
from virtue_pl.apps.server.options import Limits, ServerOptions
from virtue_pl.types import EmbeddingInput

KEYS = ("0123456789abcdef", "fedcba9876543210")
MASK = {"size": [60, 90], "counts": [0, 10, 5390]}
TALLER = {**MASK, "size": [61, 90]}


def user(*parts, **keys):
    return {"messages": [{"role": "user", "content": list(parts)}], **keys}


MALFORMED = [
    ("/v1/embeddings", {}, "input: is missing, expected a text", "input"),
    ("/v1/embeddings", {"input": None}, "input: is missing", "input"),
    ("/v1/embeddings", {"input": []}, "input: found []", "input"),
    ("/v1/embeddings", {"input": ""}, "a request is empty", "input"),
    ("/v1/embeddings", {"input": ["a", ""]}, "input.1: a request is empty", "input.1"),
    ("/v1/embeddings", {"input": [True]}, "input.0: found True, expected a text", "input.0"),
    ("/v1/embeddings", {"input": {"text": "a"}}, "input: found {'text': 'a'}", "input"),
    ("/v1/embeddings", {"input": "a", "inputs": "b"}, "'inputs' is no key of a request here; did you mean", "inputs"),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions: found 0", "dimensions"),
    (
        "/v1/embeddings",
        {"input": "a", "dimensions": 10**6},
        "dimensions: found 1,000,000, expected from 1",
        "dimensions",
    ),
    ("/v1/embeddings", {"input": "a", "dimensions": "8"}, "dimensions: found '8'", "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format: found 'int8'", "encoding_format"),
    ("/v1/embeddings", {"input": "a", "modality": "audio"}, "modality: found 'audio'", "modality"),
    ("/v1/embeddings", {"input": "a", "messages": messages("a")}, "input: found beside messages", "input"),
    ("/v1/embeddings", {"input": "a", "regions": [BOX]}, "regions without an image", "input"),
    ("/v1/embeddings", {"input": [URI, URI], "regions": [BOX]}, "regions: found beside 2 inputs", "regions"),
    ("/v1/embeddings", {"input": URI, "regions": [{"bx": 1}]}, "regions.0: 'bx' is no key", "regions.0.bx"),
    ("/v1/embeddings", {"input": URI, "regions": [{"box": [50, 5, 95, 50]}]}, "regions.0: ", "regions.0"),
    (
        "/v1/embeddings",
        {"input": URI, "regions": [{"mask": {**MASK, "size": [61, 90]}}]},
        "regions.0.mask",
        "regions.0.mask",
    ),
    ("/v1/embeddings", {"input": URI, "units": "pixel"}, "units: found without regions", "units"),
    ("/v1/embeddings", {"input": URI, "regions_as": "each"}, "regions_as", "regions_as"),
    ("/v1/embeddings", {"messages": messages("a"), "regions": [BOX]}, "regions: found beside messages", "regions"),
    ("/v1/embeddings", {"messages": messages("a"), "regions_as": "each"}, "'each', but there are no regions", None),
    ("/v1/embeddings", {"messages": "a"}, "messages: found 'a'", "messages"),
    ("/v1/embeddings", {"messages": [{"role": "usr", "content": "a"}]}, "messages.0.role: found", "messages.0.role"),
    ("/v1/embeddings", {"messages": [[]]}, "messages.0: found []", "messages.0"),
    ("/v1/embeddings", user(image_part(boxes=[])), "messages.0.content.0: 'boxes'", "messages.0.content.0.boxes"),
    ("/v1/embeddings", user({"type": "audio"}), "messages.0.content.0", "messages.0.content.0"),
    ("/v1/embeddings", {"input": ["data:image/png;base64,iVBORw0KGgo="]}, "image: ", "image"),
    ("/v1/embeddings", {"input": ["data:image/png;base64,%%%"]}, "image: the data URI is no base64", "image"),
    ("/v1/embeddings", {"input": ["/etc/passwd"], "modality": "image"}, "image: found a path", "image"),
    ("/v1/embeddings", {"input": ["file:///etc/passwd"], "modality": "image"}, "image: found the URL", "image"),
    ("/v1/embeddings", {"input": ["https://example.org/a.png"], "modality": "image"}, "which is not read", "image"),
    ("/v1/embeddings", {"input": "\ud800"}, "input: ", "input"),
    ("/v1/embeddings", {"input": "a", "\ud800": 1}, "is no key of a request here", "\\ud800"),
    ("/v1/embeddings", [1], "found [1]", None),
    ("/v1/embeddings", "a", "found 'a'", None),
    ("/v2/embed", {}, "texts, images, inputs: found none of them, expected one", None),
    ("/v2/embed", {"texts": ["a"], "images": [URI]}, "found texts and images, expected one", None),
    ("/v2/embed", {"texts": [1]}, "texts.0: found 1", "texts.0"),
    ("/v2/embed", {"texts": ["a"], "truncate": "END"}, "'truncate' is no key", "truncate"),
    ("/v2/embed", {"texts": ["a"], "input_type": "question"}, "input_type: found 'question'", "input_type"),
    ("/v2/embed", {"texts": ["a"], "output_dimension": 10**6}, "output_dimension: found", "output_dimension"),
    ("/v2/embed", {"texts": ["a", " "]}, "texts.1: a request is empty", "texts.1"),
    ("/v2/embed", {"inputs": [{"content": []}]}, "inputs.0.content: ", "inputs.0.content"),
    ("/v1/embeddings", {"input": [URI, "data:image/png;base64,%%%"]}, "input.1.image: the data URI", "input.1.image"),
    (
        "/v1/embeddings",
        {"messages": [messages("a"), messages("b", uuid="x", image_url=None)]},
        "uuid: found",
        "messages.1.uuid",
    ),
    ("/v1/embeddings", user(image_part(image_url=None)), "an image's part has no image_url", "messages.0.content.0"),
    ("/v1/embeddings", user(image_part(), image_part(uuid="x")), "image 1 has uuid, expected it on", "messages"),
    (
        "/v1/embeddings",
        user(image_part(uuid="x", image_url=None), image_part()),
        "image 0 has a uuid alone, expected its data, too",
        "messages",
    ),
    ("/v1/embeddings", {"input": [{"uuid": "x", "regions": [BOX]}]}, "uuid: found 'x'", "uuid"),
    ("/v1/embeddings", {"input": [{"uuid": ""}]}, "input.0.uuid: found ''", "input.0.uuid"),
    ("/v2/embed", {"images": [URI, "data:,"]}, "images.1.image: ", "images.1.image"),
    ("/v1/masks", {"regions": [BOX]}, "image: is missing, expected a data URI, or the uuid", "image"),
    ("/v1/embeddings", {"input": ["a", "b <|image_pad|>"]}, "input.1: a text has 1 positions", "input.1"),
    ("/v1/embeddings", {"input": "<|image_pad|>"}, "input: a text has 1 positions for images, expected 0", "input"),
    ("/v1/masks", {"uuid": "x", "regions": [BOX]}, "uuid: found 'x', under which no image was sent lately", "uuid"),
    ("/v1/masks", {"image": URI}, "regions: is missing", "regions"),
    ("/v1/masks", {"image": URI, "regions": []}, "regions: ", "regions"),
    ("/v1/masks", {"image": "a.png", "regions": [BOX]}, "image: found a path", "image"),
]


@pytest.mark.parametrize(("path", "body", "message", "param"), MALFORMED)
def test_what_is_wrong_is_one_line_with_its_key(server, path, body, message, param):
    response = server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert message in error["message"] and "\n" not in error["message"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"input": 1e999}', b"1" * 5000, b"null"])
def test_bodies_that_are_no_request(server, content):
    response = server.client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422) and "message" in response.json()["error"]


def test_other_paths_methods_and_types(server):
    assert server.client.get("/nothing").status_code == 404 and "error" in server.client.get("/nothing").json()
    assert server.client.get("/v1/embeddings").status_code == 405
    plain = server.client.post("/v1/embeddings", content=b'{"input": "a"}')
    assert plain.status_code == 422 and "content-type: application/json" in plain.json()["error"]["message"]


def test_a_sweep_of_damaged_requests_ends_in_no_server_error(server):
    """Right bodies with a value replaced, or bytes of their JSON."""
    generator = random.Random(0)
    values = [None, True, -1, 10**400, 1e308, "", "a", "\ud800", [], {}, [[]], [[[1]]], {"a": 1}, URI[:80], "data:,"]
    right = [
        {"input": ["a", "b"], "dimensions": 4},
        {"messages": messages("who?", regions=[BOX, {"mask": MASK}])},
        {"input": [URI], "modality": "image", "regions": [BOX], "units": "pixel"},
    ]
    headers = {"content-type": "application/json"}
    for number in range(120):
        body = json.loads(json.dumps(generator.choice(right)))
        owner, key = generator.choice(list(spots(body)))
        owner[key] = generator.choice(values)
        content = bytearray(json.dumps(body).encode())
        if number % 4 == 0:
            content[generator.randrange(len(content))] = generator.randrange(256)
        response = server.client.post("/v1/embeddings", content=bytes(content), headers=headers)
        assert response.status_code < 500, (content, response.text)
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200


def spots(value):
    """Yield each place of nested JSON whose value may be replaced."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from spots(value[key])


def test_keys(embedder):
    with serving(lambda: embedder, ServerOptions(keys=KEYS)) as running:
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": KEYS[0]}):
            for path in ("/v1/embeddings", "/v2/embed", "/v1/masks"):
                response = running.post(path, {"input": "a"}, headers=headers)
                assert response.status_code == 401 and response.json()["error"]["type"] == "authentication_error"
            for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
                assert running.client.get(path, headers=headers).status_code == 401
        assert [running.client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        for key in KEYS:
            headers = {"authorization": f"bearer {key}", "host": "box.example"}
            assert running.post("/v1/embeddings", {"input": "a"}, headers=headers).status_code == 200


def test_a_page_of_another_site_does_not_reach_a_server_without_keys(server):
    response = server.post("/v1/embeddings", {"input": "a"}, headers={"host": "evil.example"})
    assert response.status_code == 403


def test_limits_of_one_request(embedder):
    bodies = {"body_bytes": 20_000, "body_objects": 100, "request_rows": 2, "characters": 100}
    limits = Limits(**bodies, images=2, regions=3, pixels=100 * 100, pixels_in_flight=11_000)
    with serving(lambda: embedder, ServerOptions(limits=limits)) as running:
        assert running.post("/v1/embeddings", {"input": ["a", "b"]}).status_code == 200
        many = running.post("/v1/embeddings", {"input": ["a", "b", "c"]})
        assert many.status_code == 422 and "input: found 3 entries, expected at most 2" in many.text
        shown = png_uri(np.zeros((50, 60, 3), np.uint8))
        images = running.post("/v1/embeddings", {"input": [{"image": [shown] * 3}]})
        assert images.status_code == 422 and "found 3 images of one embedding, expected at most 2" in images.text
        two = {"image": [png_uri(np.zeros((90, 90, 3), np.uint8))] * 2}
        together = running.post("/v1/embeddings", {"input": [two]})
        assert "images and masks have 16,200 pixels together, expected at most 11,000" in together.text
        sized = {"mask": {"size": [50, 60], "counts": [0, 10, 2990]}}
        masks = running.post("/v1/embeddings", {"input": [{"image": shown, "regions": [sized] * 3}]})
        assert masks.status_code == 422 and "images and masks have 12,000 pixels together" in masks.text
        assert running.post("/v1/embeddings", {"input": [{"image": shown, "regions": [sized]}]}).status_code == 200
        regions = running.post("/v1/masks", {"image": URI[:200], "regions": [BOX] * 3})
        assert regions.status_code == 422 and "asks for 3 embeddings" in regions.text
        joint = running.post("/v1/embeddings", {"messages": messages("a", regions=[BOX] * 4)})
        assert "regions: found 4 of one image, expected at most 3" in joint.text or joint.status_code == 413
        large = running.post("/v1/embeddings", {"input": png_uri(np.zeros((101, 100, 3), np.uint8))})
        assert large.status_code == 422 and "image too large: 100x101 pixels" in large.text
        texts = running.post("/v1/embeddings", {"input": "a" * 101})
        assert texts.status_code == 422 and "found a text of 101 characters, expected at most 100" in texts.text
        nested = running.post("/v1/embeddings", {"input": [[]] * 101})
        assert nested.status_code == 413 and "more than 100 lists and objects" in nested.text
        long = running.post("/v1/embeddings", {"input": "a" * 30_000})
        assert long.status_code == 413 and "at most 20,000 bytes" in long.text
        pieces = running.client.post(
            "/v1/embeddings",
            content=(b"a" * 1000 for _ in range(50)),
            headers={"content-type": "application/json"},
        )
        assert pieces.status_code == 413


@pytest.fixture
def slow(embedder, monkeypatch):
    """The embedder, which waits until it may go on."""
    may_run, runs, embed = threading.Event(), threading.Event(), embedder.embed

    def wait_and_embed(items, **options):
        runs.set()
        assert may_run.wait(30)
        return embed(items, **options)

    monkeypatch.setattr(embedder, "embed", wait_and_embed)
    yield embedder, may_run, runs
    may_run.set()


def post_in_thread(running, found, body):
    def post():
        found.append(running.post("/v1/embeddings", body))

    thread = threading.Thread(target=post)
    thread.start()
    return thread


@pytest.mark.parametrize("limits", [Limits(queued_rows=2, request_rows=2), Limits(requests=2)])
def test_a_full_queue_is_429_and_what_was_accepted_is_answered(slow, limits):
    embedder, may_run, runs = slow
    found = []
    with serving(lambda: embedder, ServerOptions(limits=limits)) as running:
        threads = [post_in_thread(running, found, {"input": text}) for text in ("a", "b")]
        assert runs.wait(30)
        while running.server.service.count_queued() < 2:
            pass
        refused = running.post("/v1/embeddings", {"input": "c"})
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        may_run.set()
        for thread in threads:
            thread.join(30)
        assert [response.status_code for response in found] == [200, 200]
        assert running.post("/v1/embeddings", {"input": "c"}).status_code == 200
        assert running.server.service.count_queued() == 0


def test_stopping_answers_what_was_accepted_and_refuses_the_rest(slow):
    embedder, may_run, runs = slow
    found = []
    with serving(lambda: embedder) as running:
        threads = [post_in_thread(running, found, {"input": [text] * 3}) for text in "abcd"]
        assert runs.wait(30)
        while running.server.service.count_queued() < 12:
            pass
        running.server.service.refuse()
        refused = running.post("/v1/embeddings", {"input": "e"})
        assert refused.status_code == 503 and "the server stops" in refused.text
        assert running.client.get("/ready").status_code == 503 and running.client.get("/health").status_code == 200
        running.server.stop()
        may_run.set()
        for thread in threads:
            thread.join(30)
        assert [response.status_code for response in found] == [200] * 4
    assert not running.thread.is_alive()


def test_while_the_model_is_loaded_the_server_says_so(embedder):
    may_load = threading.Event()

    def load():
        assert may_load.wait(30)
        return embedder

    with serving(load, wait=False) as running:
        assert running.client.get("/ready").status_code == 503
        waiting = running.post("/v1/embeddings", {"input": "a"})
        assert waiting.status_code == 503 and "the model is being loaded" in waiting.text
        may_load.set()
        while running.client.get("/ready").status_code != 200:
            pass
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200


def test_a_defect_is_500_in_the_same_form_and_the_server_goes_on(embedder, monkeypatch):
    with serving(lambda: embedder) as running:
        with monkeypatch.context() as patch:
            patch.setattr(embedder, "embed", lambda items, **options: 1 / 0)
            failed = running.post("/v1/embeddings", {"input": "a"})
        assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
        assert "ZeroDivision" not in failed.text
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200


def test_an_image_seen_lately_is_not_seen_again(server, embedder, monkeypatch):
    runs, towers = [], embedder.model.image_features
    monkeypatch.setattr(embedder.model, "image_features", lambda images: runs.append(1) or towers(images))
    uri = png_uri(PIXELS[::-1].copy())
    for x in range(3):
        body = {"input": [uri], "regions": [{"points": [[x + 5, 5]]}]}
        assert server.post("/v1/embeddings", body).status_code == 200
    assert len(runs) == 1


def test_an_image_is_found_again_by_its_uuid(server, embedder, monkeypatch):
    """The towers do not run, and the embedding is that of the image; a name that nobody has sent is a 422."""
    uri = png_uri(PIXELS[:, ::-1].copy())
    first = server.post("/v1/embeddings", {"messages": [{"role": "user", "content": [named(uri, "mirrored")]}]})
    runs, towers = [], embedder.model.image_features
    monkeypatch.setattr(embedder.model, "image_features", lambda images: runs.append(1) or towers(images))
    again = server.post("/v1/embeddings", {"messages": [{"role": "user", "content": [named(None, "mirrored")]}]})
    flat = server.post("/v1/embeddings", {"input": [{"uuid": "mirrored", "regions": [BOX]}]})
    assert runs == [] and again.status_code == flat.status_code == 200
    for response in (again, flat):
        np.testing.assert_allclose(embedding(response), embedding(first), atol=1e-5)
    masks = server.post("/v1/masks", {"uuid": "mirrored", "regions": [BOX]})
    assert masks.status_code == 200 and masks.json()["data"][0]["mask"]["size"] == [60, 90]
    outside = server.post("/v1/masks", {"uuid": "mirrored", "regions": [{"box": [0, 0, 91, 10]}]})
    assert outside.status_code == 422 and outside.json()["error"]["param"] == "regions.0"
    unknown = server.post("/v1/embeddings", {"input": [{"uuid": "nobody's"}]})
    assert unknown.status_code == 422 and unknown.json()["error"]["code"] == "image_not_found"


def named(uri, uuid):
    return {"type": "image_url", "image_url": uri and {"url": uri}, "uuid": uuid, "regions": [BOX]}


def embedding(response):
    return response.json()["data"][0]["embedding"]


def test_a_uuid_belongs_to_the_key_that_sent_it(embedder):
    with serving(lambda: embedder, ServerOptions(keys=KEYS)) as running:
        own, other = ({"authorization": f"Bearer {key}"} for key in KEYS)
        sent = {"input": [{"image": URI, "uuid": "x"}]}
        assert running.post("/v1/embeddings", sent, headers=own).status_code == 200
        assert running.post("/v1/embeddings", {"input": [{"uuid": "x"}]}, headers=own).status_code == 200
        assert running.post("/v1/embeddings", {"input": [{"uuid": "x"}]}, headers=other).status_code == 422


def test_usage_counts_the_tokens_that_the_model_reads(server, embedder):
    def tokens(*inputs):
        return server.post("/v1/embeddings", {"input": list(inputs)}).json()["usage"]["total_tokens"]

    batch = embedder.collator.encoder_batch([EmbeddingInput("a cat")])
    assert tokens("a cat") == sum(batch.layout.token_counts)
    assert tokens("a cat", "a dog") == tokens("a cat") + tokens("a dog") and tokens("a cat") * 2 == tokens(
        *["a cat"] * 2
    )
    assert tokens({"image": URI, "regions": [BOX, POINTS]}) > tokens({"image": URI, "regions": [BOX]}) > tokens("a cat")
    cohere = server.post("/v2/embed", {"texts": ["a cat"]}).json()["meta"]["billed_units"]["input_tokens"]
    assert cohere == tokens("a cat")


def test_a_region_says_what_it_is_taken_for(server, embedder):
    """The box of the mask that is predicted for it, in the region's units, and the IoU that is expected of it."""
    for units, scale in (("pixel", (1, 1)), ("normalized", (90, 60))):
        box = [5 / scale[0], 5 / scale[1], 40 / scale[0], 50 / scale[1]]
        request = {"image": URI, "regions": [{"box": box}, POINTS if units == "pixel" else {"box": box}]}
        body = {"input": [{**request, "units": units, "regions_as": "each"}]}
        rows = server.post("/v1/embeddings", body).json()["data"]
        masks = server.post("/v1/masks", {**request, "units": units}).json()["data"]
        for row, mask in zip(rows, masks, strict=True):
            assert row["region"]["units"] == units and 0 <= row["region"]["predicted_iou"] <= 1
            assert row["region"]["predicted_iou"] == pytest.approx(mask["predicted_iou"], abs=1e-3)
            if mask["box"] is not None and row["region"]["predicted_box"] is not None:
                given = np.array(row["region"]["predicted_box"]) * [*scale, *scale]
                np.testing.assert_allclose(given, mask["box"], atol=3)


def test_slow_clients_are_let_go(embedder):
    """A body that does not come is a 408, and keeps nobody else waiting; a server that stops does not wait for it."""
    with serving(lambda: embedder, ServerOptions(limits=Limits(client_seconds=0.3))) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(address) as slow, socket.create_connection(address) as silent:
            slow.sendall(head + b"content-length: 20\r\n\r\n{")
            assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200
            slow.settimeout(30)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
            silent.sendall(head[:20])
            running.stop()


def test_a_server_that_stops_does_not_wait_for_bodies(embedder):
    with serving(lambda: embedder) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with socket.create_connection(address) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n{")
            slow.settimeout(30)
            time.sleep(0.2)
            running.server.stop()
            assert slow.recv(1000).startswith(b"HTTP/1.1 503")
            running.stop()


def test_the_work_of_a_client_that_has_gone_is_not_done(slow):
    embedder, may_run, runs = slow
    with serving(lambda: embedder) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        found = []
        first = post_in_thread(running, found, {"input": "a"})
        assert runs.wait(30)
        content = json.dumps({"input": ["b"] * 3}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        with socket.create_connection(address) as leaving:
            leaving.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + content)
            wait_for(lambda: running.server.service.count_queued() == 4)
        wait_for(lambda: running.server.service.count_queued() == 1)
        may_run.set()
        first.join(30)
        assert found[0].status_code == 200
        counted = 'virtue_requests_total{path="/v1/embeddings",status="499"} 1.0'
        wait_for(lambda: counted in running.client.get("/metrics").text)
        assert 'virtue_batch_rows_sum{task="embed"} 1.0' in running.client.get("/metrics").text


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_of_allowed_hosts(embedder, monkeypatch):
    import base64

    with serving(lambda: embedder, ServerOptions(image_hosts=("example.org",))) as running:
        access = running.server.service.access
        assert access.fetch is not None
        object.__setattr__(access, "fetch", lambda url: base64.b64decode(URI.partition(",")[2]))
        found = running.post("/v1/embeddings", {"input": ["https://example.org/a.png"], "modality": "image"})
        expected = embedder.encode(images=PIXELS)[0]
        np.testing.assert_allclose(found.json()["data"][0]["embedding"], expected, atol=1e-5)
