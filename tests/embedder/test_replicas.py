"""Several devices: equal embeddings, each batch once, models that change and errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.running_server import PIXELS
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder
from virtue_pl.embedder.replicas import Replicas, read_devices
from virtue_pl.types import VirtueError, VisualPrompt

IMAGES = [np.roll(PIXELS, 7 * shift, axis=1) for shift in range(9)]
BOX = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=PIXELS.shape[:2])
ROWS = {"texts": [f"what is {number}?" for number in range(9)], "images": IMAGES, "prompts": [BOX] * 9}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return run_checkpoint(tmp_path / "run", quickstart_spec(tmp_path))


def load(checkpoint: Path, device: str | list[str]) -> Embedder:
    return Embedder(from_pretrained(checkpoint), device, batch_size=2)


def test_several_devices_give_what_one_gives(checkpoint: Path) -> None:
    expected = load(checkpoint, "cpu").encode(**ROWS)
    several = load(checkpoint, ["cpu", "cpu", "cpu"])
    assert several.num_devices == 3
    np.testing.assert_array_equal(several.encode(**ROWS), expected)
    np.testing.assert_array_equal(several.encode(**ROWS, progress=True), expected)
    streamed = several.encode(iter(ROWS["texts"]), iter(IMAGES), iter(ROWS["prompts"]))  # type: ignore[call-overload]
    np.testing.assert_allclose(streamed, expected, atol=1e-6)
    assert several.encode(["a cat"]).shape == (1, several.embed_dim)


def test_each_batch_is_encoded_once_and_all_devices_work(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = load(checkpoint, ["cpu", "cpu"])
    together, seen = threading.Barrier(2, timeout=30), []
    encode_batch = Embedder.encode_batch

    def wait(embedder: Embedder, items: list, details: object = None) -> torch.Tensor:  # type: ignore[type-arg]
        seen.append((embedder, len(items)))
        together.wait()  # broken unless two batches are encoded at a time
        return encode_batch(embedder, items)

    monkeypatch.setattr(Embedder, "encode_batch", wait)
    several.encode(ROWS["texts"][:8])
    assert sum(count for _, count in seen) == 8 and len({id(embedder) for embedder, _ in seen}) == 2


def test_a_model_that_was_trained_is_copied_again(checkpoint: Path) -> None:
    several, one = load(checkpoint, ["cpu", "cpu"]), load(checkpoint, "cpu")
    before = several.encode(**ROWS)
    assert several.replicas is not None
    copies = several.replicas.all()
    assert several.replicas.all() == copies, "nothing has changed"
    for embedder in (several, one):
        with torch.no_grad():
            for parameter in embedder.model.parameters():
                parameter.mul_(1.01)
    after = several.encode(**ROWS)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_array_equal(after, one.encode(**ROWS))


def test_an_error_ends_what_waits(checkpoint: Path) -> None:
    several = load(checkpoint, ["cpu", "cpu"])
    begun = []

    def read(batch: list[int]) -> list:  # type: ignore[type-arg]
        begun.append(batch)
        raise VirtueError("a damaged image")

    assert isinstance(several.replicas, Replicas)
    with pytest.raises(VirtueError, match="a damaged image"):
        list(several.replicas.encode([[row] for row in range(200)], read))
    assert len(begun) < 200
    with pytest.raises(VirtueError, match="row 3"):
        several.encode(images=[*IMAGES[:3], "nowhere.png", *IMAGES[4:]])


@pytest.mark.parametrize(
    ("device", "message"), [([], "is an empty list"), ("gpu9", "device is 'gpu9', expected"), (["cpu", "x"], "'x'")]
)
def test_what_is_no_device_is_one_line(device: object, message: str) -> None:
    with pytest.raises(VirtueError, match=message) as caught:
        read_devices(device)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
