"""A handle of one image, and rows given as requests: the embeddings of `encode`, at the cost of the prompts alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder
from virtue_pl.types import VirtueError, VisualPrompt

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SIZE = (60, 90)
BOX = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=SIZE)
POINT = VisualPrompt.from_pixels(points=[[20, 30]], size=SIZE)
MASK = np.zeros((60, 90), dtype=bool)
MASK[10:30, 20:60] = True


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("handle")
    return Embedder(from_pretrained(run_checkpoint(folder / "run", quickstart_spec(folder))), cached_images=0)


@pytest.fixture
def runs(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of images whose towers run, call by call."""
    found: list[int] = []
    towers = embedder.model.image_features

    def count_and_encode(images):
        found.append(len(images))
        return towers(images)

    monkeypatch.setattr(embedder.model, "image_features", count_and_encode)
    yield found


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


def test_further_prompts_run_no_tower_and_are_those_of_encode(embedder, runs):
    handle = embedder.image(PIXELS)
    mask = torch.from_numpy(MASK)[None]
    close(handle.encode(BOX, "who?"), embedder.encode("who?", PIXELS, BOX)[0])
    close(handle.encode([BOX, POINT]), embedder.encode(None, [PIXELS], [[BOX, POINT]])[0])
    close(handle.encode(), embedder.encode(None, PIXELS)[0])
    runs.clear()
    found = handle.regions(boxes=[[5, 5, 40, 50]], points=torch.tensor([[20, 30]]), masks=mask, text="who?")
    assert runs == []
    prompts = [BOX, POINT, VisualPrompt.from_pixels(masks=mask, size=SIZE)]
    close(found, embedder.encode("who?", PIXELS, prompts))
    close(handle.regions(prompts=prompts[::-1], text="who?", batch_size=1), found[::-1])


def test_a_handle_follows_a_model_that_changes(embedder, runs):
    handle = embedder.image(PIXELS)
    before = handle.encode(BOX)
    parameter = embedder.model.segmentation.backbone.parameters().__next__()
    with torch.no_grad():
        parameter.mul_(1.5)
    changed = handle.encode(BOX)
    close(changed, embedder.encode(None, PIXELS, BOX)[0])
    with torch.no_grad():
        parameter.div_(1.5)
    close(handle.encode(BOX), before)


def test_mixed_rows_are_what_each_is_alone(embedder, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PIXELS).save(path)
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    request = {"text": "who?", "image": str(path), "regions": [{"box": [5, 5, 40, 50]}]}
    each = {**request, "regions": [{"box": [5, 5, 40, 50]}, {"points": [[20, 30]]}], "regions_as": "each"}
    rows = [
        "a cat",
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        path,
        uri,
        request,
        each,
    ]
    found = embedder.encode(rows)
    image, box, point = (
        embedder.encode(*columns)[0] for columns in [(None, PIXELS), ("who?", PIXELS, BOX), ("who?", PIXELS, POINT)]
    )
    close(found, [embedder.encode("a cat")[0], *[image] * 5, box, box, point])
    close(embedder.encode(iter(rows), batch_size=2), found)
    close(embedder.encode(request), box[None])
    close(embedder.encode(None, [uri, str(path)]), [image, image])


@pytest.mark.parametrize(
    "text", ["data: what is it?", "DATA:", "https://example.org is a page", "file://x", "image.png"]
)
def test_words_that_look_like_something_else_are_words(embedder, text):
    close(embedder.encode([text, "a cat"])[0], embedder.encode([{"text": text}])[0])


def test_queries_and_documents_have_their_instructions(embedder):
    embedder.instructions = {"query": "Find the caption."}
    close(embedder.encode_query(["who?"]), embedder.encode(["Find the caption. who?"]))
    close(embedder.encode_query(["who?"], instruction=""), embedder.encode(["who?"]))
    close(embedder.encode_document("a cat", truncate_dim=4), embedder.encode("a cat", truncate_dim=4))
    close(embedder.encode_query(None, PIXELS, BOX), embedder.encode("Find the caption.", PIXELS, BOX))
    assert embedder.encode("a cat", precision="binary").dtype == np.int8


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda e: e.encode([{"text": "a", "images": "b"}]),
            "row 0: 'images' is no key of a request here",
        ),
        (lambda e: e.encode(["a", {"image": PIXELS, "regions": [{"box": [0, 0, 91, 9]}]}]), "row 1: regions.0: box"),
        (lambda e: e.encode([{"text": "a"}], PIXELS), "row 0 is a request, expected its image and regions within it"),
        (lambda e: e.encode(None, "https://example.org/a.png"), "row 0: found the URL"),
        (lambda e: e.image(PIXELS).regions(), "regions: none are given"),
        (lambda e: e.image(PIXELS).regions(boxes=[[0, 0, 91, 9]]), "lies outside the image"),
        (lambda e: e.image(None), "row 0 is empty"),
        (lambda e: e.image("nothing.png"), "there is no image nothing.png"),
    ],
)
def test_mistakes_are_one_line(embedder: Embedder, call, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VirtueError) as caught:
        call(embedder)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_of_a_handle_turns_upright(embedder):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    assert embedder.image(buffer.getvalue()).size == (90, 60)
