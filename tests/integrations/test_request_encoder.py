"""What other libraries' callers give becomes one request each, and what is none is one line."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.running_server import BOX, PIXELS, URI, image_part, messages
from virtue_pl.integrations.request_encoder import RequestEncoder, load_embedder, to_request
from virtue_pl.types import VirtueError, VisualPrompt
from virtue_pl.types.requests import EmbeddingRequest

PROMPT = VisualPrompt.from_pixels(boxes=[BOX["box"]], size=(60, 90))
MEMORY = {"type": "image", "image": Image.fromarray(PIXELS), "regions": [BOX]}
SAME = {
    "a mapping": {"text": "who?", "image": PIXELS, "regions": [BOX]},
    "a request": EmbeddingRequest(text="who?", image=PIXELS, regions=[BOX]),
    "a conversation": messages("who?", regions=[BOX]),
    "a message": messages("who?", regions=[BOX])[0],
    "an image in memory": [{"role": "user", "content": [MEMORY, {"type": "text", "text": "who?"}]}],
    "an instruction": {"instruction": "who?", "image": URI, "regions": [BOX]},
    "a system message": [
        {"role": "system", "content": "who?"},
        {"role": "user", "content": [image_part(regions=[BOX])]},
    ],
}


@pytest.fixture(scope="module")
def encoder(embedder):
    return RequestEncoder(embedder)


@pytest.fixture
def image_file(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def test_every_form_of_a_request_gives_one_embedding(encoder, embedder):
    found = encoder.encode(list(SAME.values()), "document")
    expected = embedder.encode("who?", PIXELS, PROMPT)
    assert found.shape == (len(SAME), encoder.embed_dim) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.repeat(expected, len(SAME), axis=0), atol=1e-5)


def test_texts_and_images(encoder, embedder, image_file):
    values = ["a cat", image_file, PIXELS, image_file.read_bytes(), URI, Image.fromarray(PIXELS)]
    found = encoder.encode(values, "query")
    np.testing.assert_allclose(found[0], embedder.encode("a cat")[0], atol=1e-5)
    np.testing.assert_allclose(found[1:], np.repeat(embedder.encode(images=PIXELS), 5, axis=0), atol=1e-5)
    as_images = encoder.encode([str(image_file), URI], "document", "image")
    np.testing.assert_allclose(as_images, found[1:3], atol=1e-5)
    assert encoder.encode([], "query").shape == (0, encoder.embed_dim)


def test_each_role_has_its_instruction(embedder):
    encoder = RequestEncoder(embedder, {"query": "Find."}, truncate_dim=8)
    assert encoder.embed_dim == 8
    query, document = (encoder.encode(["a cat"], role)[0] for role in ("query", "document"))
    np.testing.assert_allclose(query, embedder.encode("Find. a cat", truncate_dim=8)[0], atol=1e-6)
    np.testing.assert_allclose(document, embedder.encode("a cat", truncate_dim=8)[0], atol=1e-6)


def test_threads_share_an_embedder(embedder):
    """As many functions as a library makes of it, each in threads of its own, get the embeddings of one thread."""
    values = [{"image": np.roll(PIXELS, shift, axis=0), "regions": [BOX]} for shift in range(6)]
    expected = RequestEncoder(embedder).encode(values, "document")
    found: dict[int, np.ndarray] = {}

    def encode(number):
        found[number] = RequestEncoder(embedder).encode([values[number]], "document")[0]

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[number] for number in range(6)], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], r"row 1: found \[1, 2, 3\], expected text: token ids are of another model's tokenizer; .*=False"),
        (9707, "row 1: found 9707, expected text: token ids"),
        (None, "row 1: found None, expected a text, an image, or a request as a mapping"),
        (("a", "b"), r"row 1: found \('a', 'b'\), expected a text"),
        ("", "row 1: a request is empty, expected a text, an image, or both"),
        ({"image": PIXELS, "regons": []}, "row 1: 'regons' is no key of a request here; did you mean 'regions'"),
        ({"image": PIXELS, "regions": [{"box": [0, 0, 900, 9]}]}, r"row 1: regions.0: .*outside"),
        (
            {"image": PIXELS, "regions": [BOX, BOX], "regions_as": "each"},
            "row 1: regions_as is 'each', .* 2 embeddings",
        ),
        ({"image": "nowhere.png"}, "row 1.*nowhere.png"),
        ({"image": "https://a.b/c.png"}, "the URL 'https://a.b/c.png', which is not read"),
        ({"role": "user", "content": [{"type": "audio"}]}, "row 1: content.0: .*'audio'"),
    ],
)
def test_what_is_no_input_is_one_line(encoder, value, message):
    with pytest.raises(VirtueError, match=message) as caught:
        encoder.encode(["a cat", value], "document")
    assert "\n" not in str(caught.value)


def test_the_path_of_an_image_is_no_text(encoder, image_file):
    with pytest.raises(VirtueError, match=r'the path of an image, expected text: give the image as \{"image": PATH\}'):
        encoder.encode([str(image_file)], "query")


def test_one_input_is_no_list(encoder):
    with pytest.raises(VirtueError, match="found 'a cat' alone, expected a list of inputs"):
        encoder.encode("a cat", "document")


def test_wrong_models_and_options_are_one_line(embedder, exported, tmp_path):
    with pytest.raises(VirtueError, match="options: 'batchsize' is none of this model; did you mean 'batch_size'"):
        load_embedder(exported, batchsize=3)
    with pytest.raises(VirtueError, match="dtype: given beside an Embedder"):
        load_embedder(embedder, dtype="float16")
    with pytest.raises(VirtueError, match="model is 3, expected a folder"):
        load_embedder(3)  # type: ignore[arg-type]
    with pytest.raises(VirtueError, match=r"holds nothing, expected virtue.yaml"):
        load_embedder(tmp_path)
    with pytest.raises(VirtueError, match="instructions: 'qeury' is none of this model; did you mean 'query'"):
        RequestEncoder(embedder, {"qeury": "Find."})
    with pytest.raises(VirtueError, match="truncate_dim is 9999, expected from 1"):
        RequestEncoder(embedder, truncate_dim=9999)


def test_a_path_object_is_an_image():
    assert to_request(Path("street.jpg")).images == [Path("street.jpg")]
