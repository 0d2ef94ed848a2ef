"""Equal inputs have equal embeddings (1e-5, float32) by whatever door they come in: Python, the command line, HTTP in
every form, sentence-transformers, LangChain and LanceDB.

What each door takes beside, its official clients and its errors are tested where the door is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig
from PIL import Image
from sentence_transformers import SentenceTransformer

from fixtures.running_server import BOX, PIXELS, POINTS, URI, Running, image_part, serving
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.cli.main import main
from virtue_pl.embedder import Embedder
from virtue_pl.integrations import LanceDBEmbeddings, LangChainEmbeddings
from virtue_pl.preprocessing.segmentations import encode_mask
from virtue_pl.types import VisualPrompt

INSIDE = np.zeros(PIXELS.shape[:2], dtype=bool)
INSIDE[12:40, 20:70] = True
TEXTS = {"text": "a cat", "long text": "a dog that sleeps on a mat in front of a red house"}
REGIONS: dict[str, dict[str, Any]] = {"box": BOX, "points": POINTS, "mask": {"mask": encode_mask(INSIDE)}}
REQUESTS: dict[str, dict[str, Any]] = {
    **{name: {"text": text} for name, text in TEXTS.items()},
    "image": {"image": URI},
    **{name: {"text": "who?", "image": URI, "regions": [region]} for name, region in REGIONS.items()},
}
"""All inputs, as requests."""

Vectors = dict[str, Any]


class Doors(NamedTuple):
    """One model, as a folder, in Python and behind a server."""

    folder: Path
    embedder: Embedder
    server: Running


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("doors")
    export(run_checkpoint(folder / "run", quickstart_spec(folder)), folder / "model")
    embedder = Embedder.from_pretrained(folder / "model", device="cpu")
    with serving(lambda: embedder) as server:
        yield Doors(folder / "model", embedder, server)


@pytest.fixture(scope="module")
def expected(doors: Doors) -> Vectors:
    """The columns of `Embedder.encode`: texts, pixels and visual prompts, without any request."""
    size = PIXELS.shape[:2]
    prompts = {
        "box": VisualPrompt.from_pixels(boxes=[BOX["box"]], size=size),
        "points": VisualPrompt.from_pixels(points=POINTS["points"], labels=POINTS["labels"], size=size),
        "mask": VisualPrompt.from_pixels(masks=INSIDE[None], size=size),
    }
    encode = doors.embedder.encode
    return {
        **dict(zip(TEXTS, encode(list(TEXTS.values())), strict=True)),
        "image": encode(images=PIXELS)[0],
        **dict(zip(prompts, encode("who?", PIXELS, list(prompts.values())), strict=True)),
    }


def python_requests(doors: Doors, folder: Path) -> Vectors:
    return dict(zip(REQUESTS, doors.embedder.encode(list(REQUESTS.values())), strict=True))


def python_handle(doors: Doors, folder: Path) -> Vectors:
    handle = doors.embedder.image(PIXELS)
    boxes, points = [BOX["box"]], [VisualPrompt.from_pixels(**POINTS, size=handle.size)]
    found = handle.regions(boxes=boxes, masks=INSIDE[None], prompts=points, text="who?")
    return {"image": handle.encode(), **dict(zip(("box", "mask", "points"), found, strict=True))}


def encode_command(doors: Doors, source: Path, out: Path, *options: str) -> list[Any]:
    """Vectors that the command writes, in the order of the source."""
    arguments = [str(source), "--model", str(doors.folder), "--out", str(out), "--device", "cpu", "--max-left-out", "0"]
    assert main(["encode", *arguments, *options]) == 0
    if "lance" in options:
        (uri,) = out.glob("*.lance")
        found = lancedb.connect(out).open_table(uri.stem).to_arrow()
    else:
        found = pyarrow.dataset.dataset(out, format="parquet").to_table()
    return found.sort_by("id")["vector"].to_pylist()


def write_requests(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"regions": [], **request}) + "\n" for request in requests))
    return path


def command_line(doors: Doors, folder: Path, *options: str) -> Vectors:
    """A file of texts, a folder of images, and a file of regions."""
    (folder / "images").mkdir()
    Image.fromarray(PIXELS).save(folder / "images" / "street.png")
    texts = write_requests(folder / "texts.jsonl", [REQUESTS[name] for name in TEXTS])
    regions = write_requests(folder / "regions.jsonl", [REQUESTS[name] for name in REGIONS])
    return {
        **dict(zip(TEXTS, encode_command(doors, texts, folder / "t", "--documents", "texts", *options), strict=True)),
        "image": encode_command(doors, folder / "images", folder / "i", *options)[0],
        **dict(
            zip(REGIONS, encode_command(doors, regions, folder / "r", "--documents", "regions", *options), strict=True)
        ),
    }


def command_line_lance(doors: Doors, folder: Path) -> Vectors:
    return command_line(doors, folder, "--format", "lance")


def post(doors: Doors, body: dict[str, Any], path: str = "/v1/embeddings") -> Any:
    response = doors.server.post(path, {"model": "virtue", **body})
    assert response.status_code == 200, response.text
    found = response.json()
    return [row["embedding"] for row in found["data"]] if "data" in found else found["embeddings"]["float"]


def content(request: dict[str, Any]) -> list[dict[str, Any]]:
    """A request as the parts of a message."""
    image = [image_part(**{name: request[name] for name in ("regions",) if name in request})]
    text = [{"type": "text", "text": request.get("text")}]
    return [*(image if "image" in request else []), *(text if "text" in request else [])]


def openai_form(doors: Doors, folder: Path) -> Vectors:
    found = dict(zip(TEXTS, post(doors, {"input": list(TEXTS.values())}), strict=True))
    others = {name: request for name, request in REQUESTS.items() if name not in TEXTS}
    return found | dict(zip(others, post(doors, {"input": list(others.values())}), strict=True))


def vllm_form(doors: Doors, folder: Path) -> Vectors:
    conversations = [[{"role": "user", "content": content(request)}] for request in REQUESTS.values()]
    return dict(zip(REQUESTS, post(doors, {"messages": conversations}), strict=True))


def infinity_form(doors: Doors, folder: Path) -> Vectors:
    image = {"input": [URI], "modality": "image"}
    return {
        **dict(zip(TEXTS, post(doors, {"input": list(TEXTS.values()), "modality": "text"}), strict=True)),
        "image": post(doors, image)[0],
        **{
            name: post(doors, {**image, "regions": [region], "instruction": "who?"})[0]
            for name, region in REGIONS.items()
        },
    }


def cohere_form(doors: Doors, folder: Path) -> Vectors:
    inputs = [{"content": content(request)} for request in REQUESTS.values()]
    body = {"input_type": "search_document", "embedding_types": ["float"]}
    return dict(zip(REQUESTS, post(doors, {**body, "inputs": inputs}, "/v2/embed"), strict=True))


def sentence_transformers(doors: Doors, folder: Path) -> Vectors:
    model = SentenceTransformer(str(doors.folder), trust_remote_code=True, device="cpu")
    return dict(zip(REQUESTS, model.encode([TEXTS.get(name, REQUESTS[name]) for name in REQUESTS]), strict=True))


def langchain(doors: Doors, folder: Path) -> Vectors:
    embeddings = LangChainEmbeddings(doors.embedder)
    found = embeddings.embed_documents([TEXTS.get(name, request) for name, request in REQUESTS.items()])
    np.testing.assert_allclose(embeddings.embed_query(REQUESTS["mask"]), found[-1], atol=1e-5)
    return dict(zip(REQUESTS, found, strict=True))


def lancedb_table(doors: Doors, folder: Path) -> Vectors:
    """A column of structs, which the table embeds; each request is searched for, too, and is nearest to itself."""
    virtue = LanceDBEmbeddings.create(name=str(doors.folder), device="cpu")
    functions = [EmbeddingFunctionConfig(source_column="request", vector_column="vector", function=virtue)]
    rows = pa.table({"name": list(REQUESTS), "request": pa.array(list(REQUESTS.values()))})
    table = lancedb.connect(folder).create_table("requests", rows, embedding_functions=functions)
    for name, request in REQUESTS.items():
        (hit,) = table.search(request).distance_type("cosine").limit(1).to_list()
        assert hit["name"] == name and hit["_distance"] < 1e-5
    found = table.to_arrow()
    return dict(zip(found["name"].to_pylist(), found["vector"].to_pylist(), strict=True))


DOORS = (
    *(python_requests, python_handle, command_line, command_line_lance),
    *(openai_form, vllm_form, infinity_form, cohere_form, sentence_transformers, langchain, lancedb_table),
)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_embeddings_are_the_same(door: Any, doors: Doors, expected: Vectors, tmp_path: Path) -> None:
    found = door(doors, tmp_path)
    assert found.keys() == expected.keys() - (set(TEXTS) if door is python_handle else set())
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[name], atol=1e-5, err_msg=name)


def test_no_two_inputs_have_the_same_embedding(expected: Vectors) -> None:
    """Else the test above would not tell one from the other, as where a region is dropped."""
    vectors = np.stack(list(expected.values()))
    similar = vectors @ vectors.T - np.eye(len(vectors))
    assert similar.max() < 1 - 1e-4
