"""The server as its clients see it: the official ones reach it, and every form gives the embeddings of Python."""

from __future__ import annotations

import base64

import cohere
import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from openai.types import CreateEmbeddingResponse

from fixtures.generated_requests import call_operations
from fixtures.running_server import BOX, PIXELS, POINTS, URI, image_part, messages
from virtue_pl.preprocessing.segmentations import decode_segmentation
from virtue_pl.types import EmbeddingInput, VisualPrompt

KEY = "a key that is not read"
TEXTS = ["a cat", "a dog on a mat"]
BOX_PROMPT = VisualPrompt.from_pixels(boxes=[BOX["box"]], size=(60, 90))
POINTS_PROMPT = VisualPrompt.from_pixels(points=POINTS["points"], labels=POINTS["labels"], size=(60, 90))


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), np.asarray(expected), atol=1e-5)


def vectors(response):
    assert response.status_code == 200, response.text
    return [row["embedding"] for row in response.json()["data"]]


@pytest.fixture(scope="module")
def expected(embedder):
    """The embeddings of Python: two texts, an image, an image with a box and a text, and with points and the text."""
    return {
        "texts": embedder.encode(TEXTS),
        "image": embedder.encode(images=PIXELS),
        "box alone": embedder.encode(images=PIXELS, prompts=BOX_PROMPT),
        "box": embedder.encode("who?", PIXELS, BOX_PROMPT),
        "points": embedder.encode("who?", PIXELS, POINTS_PROMPT),
        "joint": embedder.encode(["who?"], [PIXELS], [[BOX_PROMPT, POINTS_PROMPT]]),
    }


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_texts_in_its_default_base64(client, expected):
    found = client.embeddings.create(model="virtue", input=TEXTS)
    close([row.embedding for row in found.data], expected["texts"])
    assert [row.index for row in found.data] == [0, 1] and found.usage.total_tokens > 0 and found.model == "virtue"
    close(client.embeddings.create(model="virtue", input=TEXTS[0]).data[0].embedding, expected["texts"][0])
    plain = client.embeddings.create(model="virtue", input=TEXTS, encoding_format="float", user="me")
    close([row.embedding for row in plain.data], expected["texts"])


def test_openai_dimensions_are_the_first_ones_scaled(client, expected):
    found = client.embeddings.create(model="virtue", input=TEXTS, dimensions=8)
    first = expected["texts"][:, :8]
    close([row.embedding for row in found.data], first / np.linalg.norm(first, axis=1, keepdims=True))


def test_openai_images_and_regions_by_extra_body(client, expected):
    image = client.embeddings.create(model="virtue", input=[URI], extra_body={"modality": "image"})
    close(image.data[0].embedding, expected["image"][0])
    region = {"modality": "image", "regions": [BOX]}
    found = client.embeddings.create(model="virtue", input=[URI], extra_body=region)
    close(found.data[0].embedding, expected["box alone"][0])
    chat = client.embeddings.create(
        model="virtue", input=openai.omit, extra_body={"messages": messages("who?", regions=[BOX])}
    )
    close(chat.data[0].embedding, expected["box"][0])


def test_openai_post_with_a_region(client, expected):
    body = {"model": "virtue", "messages": messages("who?", regions=[BOX, POINTS]), "regions_as": "each"}
    found = client.post("/embeddings", cast_to=CreateEmbeddingResponse, body=body)
    close([row.embedding for row in found.data], [expected["box"][0], expected["points"][0]])
    region = found.data[1].model_extra["region"]
    assert {"index": 1, "units": "pixel", **POINTS}.items() <= region.items() and "predicted_iou" in region
    joint = client.post("/embeddings", cast_to=CreateEmbeddingResponse, body={**body, "regions_as": "joint"})
    close(joint.data[0].embedding, expected["joint"][0])


def test_openai_errors_are_its_own_classes(client):
    with pytest.raises(openai.UnprocessableEntityError, match="'reggions' is no key") as caught:
        client.embeddings.create(model="virtue", input="a", extra_body={"reggions": []})
    assert caught.value.param == "reggions" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="expected 'virtue'"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert [model.id for model in client.models.list().data] == ["virtue"]


def test_langchain(server, expected):
    with httpx.Client(timeout=60) as http:
        options = {"model": "virtue", "base_url": f"{server.url}/v1", "api_key": KEY, "max_retries": 0}
        found = OpenAIEmbeddings(**options, check_embedding_ctx_length=False, http_client=http)
        close(found.embed_documents(TEXTS), expected["texts"])


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]], [9.5]])
def test_token_ids_name_the_option(client, tokens):
    """langchain-openai sends them by default, of a tokenizer that it downloads."""
    with pytest.raises(openai.UnprocessableEntityError, match="set check_embedding_ctx_length=False") as caught:
        client.embeddings.create(model="virtue", input=tokens)
    assert caught.value.param == "input"


@pytest.fixture
def cohere_client(server):
    with httpx.Client(timeout=60) as http:
        yield cohere.ClientV2(api_key=KEY, base_url=server.url, httpx_client=http)


def test_cohere(cohere_client, expected, embedder):
    client = cohere_client
    found = client.embed(model="virtue", input_type="search_document", texts=TEXTS, embedding_types=["float"])
    close(found.embeddings.float_, expected["texts"])
    assert found.texts == TEXTS
    query = client.embed(model="virtue", input_type="search_query", texts=TEXTS, embedding_types=["float"])
    close(query.embeddings.float_, embedder.encode_query(TEXTS))
    image = client.embed(model="virtue", input_type="image", images=[URI], embedding_types=["float"])
    close(image.embeddings.float_, expected["image"])
    content = {"content": [image_part(regions=[BOX]), {"type": "text", "text": "who?"}]}
    region = client.embed(model="virtue", input_type="search_document", inputs=[content], embedding_types=["base64"])
    close(np.frombuffer(base64.b64decode(region.embeddings.base64[0]), "<f4"), expected["box"][0])
    short = client.embed(
        model="virtue", input_type="search_document", texts=TEXTS, output_dimension=8, embedding_types=["binary"]
    )
    signs = np.packbits(expected["texts"][:, :8] > 0, axis=1).astype(np.int16) - 128
    assert short.embeddings.binary == signs.tolist()
    with pytest.raises(cohere.UnprocessableEntityError, match="--calibration"):
        client.embed(model="virtue", input_type="search_document", texts=TEXTS, embedding_types=["int8"])


FRACTIONS = {"box": [5 / 90, 5 / 60, 40 / 90, 50 / 60]}
FORMS = {
    "messages": {"messages": messages("who?", regions=[BOX])},
    "messages beside an empty input": {"messages": messages("who?", regions=[BOX]), "input": []},
    "several conversations": {"messages": [messages("who?", regions=[BOX])]},
    "a conversation as input": {"input": messages("who?", regions=[BOX])},
    "conversations as input": {"input": [messages("who?", regions=[BOX])]},
    "normalised": {
        "messages": messages("who?", units="normalized", regions=[{"box": [5 / 90, 5 / 60, 40 / 90, 50 / 60]}])
    },
    "instruction beside the image": {"input": [URI], "modality": "image", "regions": [BOX], "instruction": "who?"},
    "a data URI is an image": {"input": URI, "regions": [BOX], "instruction": "who?"},
    "flat": {"input": [{"image": URI, "text": "who?", "regions": [BOX]}]},
    "each of one": {"messages": messages("who?", regions=[BOX]), "regions_as": "each"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_embedding_of_python(server, expected, form):
    (found,) = vectors(server.post("/v1/embeddings", {"model": "virtue", **FORMS[form]}))
    close(found, expected["box"][0])


def test_masks_are_those_of_python_and_prompts_again(server, embedder):
    response = server.post("/v1/masks", {"image": URI, "regions": [BOX, POINTS]})
    rows = response.json()["data"]
    pixels = embedder.image(PIXELS).item.images
    own = embedder.predict_masks([EmbeddingInput("", pixels, prompt) for prompt in (BOX_PROMPT, POINTS_PROMPT)])
    for row, mask in zip(rows, own, strict=True):
        decoded = decode_segmentation(row["mask"], "mask", (60, 90))
        assert decoded.sum() == row["area"] and abs(decoded.mean() - mask.float().mean().item()) < 0.03
    if rows[0]["area"]:
        vectors(server.post("/v1/embeddings", {"input": [URI], "regions": [{"mask": rows[0]["mask"]}]}))


def test_states_and_counters(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    vectors(server.post("/v1/embeddings", {"input": "a"}))
    text = server.client.get("/metrics").text
    assert 'virtue_requests_total{path="/v1/embeddings",status="200"}' in text and "virtue_queued_rows 0.0" in text
    assert 'path="other"' not in text or "nothing" not in text


def test_schemathesis_finds_no_server_error(server):
    statuses = call_operations(server.url)
    assert len(statuses) > 60 and max(statuses) < 500
