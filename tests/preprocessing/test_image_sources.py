"""Images decoded when their batch comes: the pixels of `to_image`, and never more of them than a batch has rows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from virtue_pl.preprocessing import image_sources
from virtue_pl.preprocessing.image_sources import DecodedImages, ImageSource, reopen
from virtue_pl.preprocessing.images import pixel_key, to_image
from virtue_pl.types import DataError, EmbeddingInput


class Alive:
    """Counts decoded images: all, and at most at a time."""

    def __init__(self, decode: Callable[..., torch.Tensor]) -> None:
        self.decode = decode
        self.images: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.total = self.most = 0

    def __call__(self, *arguments: Any) -> torch.Tensor:
        pixels = self.decode(*arguments)
        self.images.add(pixels)
        self.total += 1
        self.most = max(self.most, len(self.images))
        return pixels


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    gc.collect()
    counter = Alive(to_image)
    monkeypatch.setattr(image_sources, "to_image", counter)
    yield counter
    gc.collect()
    assert not counter.images, "nothing is held when all is done"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_noise(tmp_path / f"{number}.png", number) for number in range(9)]


def write_noise(path: Path, number: int, size: tuple[int, int] = (8, 10)) -> Path:
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def item(images: DecodedImages, *sources: ImageSource) -> EmbeddingInput:
    found = [images.identities[source] for source in sources]
    return EmbeddingInput("", tuple(each.placeholder for each in found), image_keys=tuple(each.key for each in found))


@pytest.mark.parametrize("capacity", [1, 4, 8, 9, 20])
def test_a_batch_of_images_is_alive_and_no_more(paths: list[Path], alive: Alive, capacity: int) -> None:
    """And each is decoded once: sizes come of the headers alone where not all can stay."""
    sources = [ImageSource(path, f"row {number}") for number, path in enumerate(paths)]
    images = DecodedImages(sources, capacity)
    assert alive.total == (9 if capacity >= 9 else 0)
    for start in range(0, 9, capacity):
        rows = images.load([item(images, source) for source in sources[start : start + capacity]])
        for row, path in zip(rows, paths[start:], strict=False):
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
            assert torch.equal(row.images[0], pixels) and row.image_keys == (pixel_key(pixels),)
        del rows, row
    assert alive.total == 9 and alive.most <= capacity
    del images


def test_what_the_next_batch_needs_too_stays(paths: list[Path], alive: Alive) -> None:
    sources = [ImageSource(path, "row") for path in paths[:3]]
    images = DecodedImages(sources, capacity=2)
    for batch in ([0, 1], [1, 2], [2], [2, 0]):
        images.load([item(images, sources[number]) for number in batch])
    assert alive.total == 4 and alive.most == 2
    del images


def test_equal_images_of_several_forms_are_one(paths: list[Path], alive: Alive) -> None:
    forms = [paths[0], str(paths[0]), paths[0].read_bytes(), np.array(Image.open(paths[0])), Image.open(paths[0])]
    sources = [ImageSource(form, "row") for form in forms]
    images = DecodedImages(sources, capacity=1)
    assert len({identity.key for identity in images.identities.values()}) == 2, "of the file, and of its pixels"
    loaded = images.load([item(images, source) for source in sources])
    assert {row.image_keys for row in loaded} == {(pixel_key(loaded[0].images[0]),)}
    assert alive.total == 4
    del images, loaded


def test_a_bad_image_is_named_before_anything_else_is_done(paths: list[Path], alive: Alive) -> None:
    paths[7] = write_noise(paths[7].with_suffix(".jpg"), 7, (64, 64))
    sources = [ImageSource(path, f"row {number}") for number, path in enumerate(paths)]
    whole = paths[7].read_bytes()
    paths[7].write_bytes(whole[:20])
    with pytest.raises(DataError, match=rf"^row 7 \({paths[7]}\): damaged image"):
        DecodedImages(sources, capacity=2)
    paths[7].write_bytes(whole[:-400])
    images = DecodedImages(sources, capacity=2)
    with pytest.raises(DataError, match=rf"^row 7 \({paths[7]}\): damaged image"):
        images.load([item(images, sources[7])])
    del images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_tells_the_shape_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg", exif=exif)
    source = ImageSource(tmp_path / "a.jpg", "row 0")
    found = source.identify_file()
    assert found is not None and found.placeholder.shape == source.decode().shape


def test_a_file_that_changes_meanwhile_is_named(paths: list[Path], alive: Alive) -> None:
    sources = [ImageSource(path, f"row {number}") for number, path in enumerate(paths)]
    images = DecodedImages(sources, capacity=2)
    write_noise(paths[3], 3, (12, 10))
    images.load([item(images, sources[2])])
    with pytest.raises(DataError, match=rf"^row 3: the image {paths[3]} changed while it was read$"):
        images.load([item(images, sources[3])])
    paths[4].unlink()
    with pytest.raises(DataError, match=rf"^row 4: there is no image {paths[4]}"):
        images.load([item(images, sources[4])])
    del images


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pil_image_that_is_still_in_its_file_stays_there(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path, exif=exif)
    lazy, loaded = Image.open(path), Image.open(path)
    loaded.load()
    assert torch.equal(ImageSource(lazy, "row 0").decode(), to_image(loaded, "row 0"))
    assert lazy.tile and reopen(loaded) is loaded and reopen(path) is path
    lazy.draft("L", (8, 8))
    assert reopen(lazy) is lazy, "it was changed"
    turned = Image.open(path)
    turned.getexif()[0x0112] = 3
    assert reopen(turned) is turned, "it was turned"
    path.unlink()
    assert reopen(lazy) is lazy
    for image in (lazy, loaded, turned):
        image.close()
