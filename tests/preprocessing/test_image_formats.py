"""Image files of any format and mode: what is read, how its pixels become RGB, and what is said of the rest."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from virtue_pl.preprocessing.embedding_rows import build_rows, check_prompt_sizes, names_image
from virtue_pl.preprocessing.image_formats import CONVERTED, EXTENSIONS
from virtue_pl.preprocessing.images import convert_to_png, decode, read_header
from virtue_pl.types import DataError, EmbeddingInput, VirtueError, VisualPrompt

COLOURED = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
GREY = np.arange(108, dtype=np.uint16).reshape(9, 12) * 600
FORMATS = [*EXTENSIONS, *(name for name in CONVERTED if name != "HEIF")]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_and_stored_without_loss(format: str) -> None:
    data = encoded(COLOURED, format)
    pixels = decode(data, "key")
    assert read_header(data, "key")[1:] == (9, 12) == tuple(pixels.shape[1:])
    assert torch.equal(decode(convert_to_png(data, "key"), "key"), pixels)
    if format in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(COLOURED))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_become_256_levels(format: str) -> None:
    pixels = decode(encoded(Image.fromarray(GREY), format), "key")
    assert np.array_equal(pixels[0].numpy(), (GREY.astype(int) * 255 + 32_767) // 65_535)
    assert torch.equal(pixels[0], pixels[2]) and len(pixels.unique()) > 100


def test_the_first_image_of_a_gif_or_a_tiff_counts() -> None:
    second = Image.new("RGB", (12, 9))
    for format in ("GIF", "TIFF"):
        data = encoded(COLOURED, format, save_all=True, append_images=[second])
        assert torch.equal(decode(data, "key"), decode(encoded(COLOURED, format), "key"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7 ...", "unsupported image format: PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported image format: a text such as SVG or HTML"),
        (encoded(COLOURED, "PPM"), "unsupported image format: PPM"),
        (b"no image", "damaged image: 8 bytes that are no JPEG"),
        (encoded(COLOURED, "PNG")[:60], "damaged image"),
        (encoded(Image.new("F", (3, 3), float("nan")), "TIFF"), "unsupported image format: mode F with values of nan"),
    ],
)
def test_damaged_is_said_only_of_what_is_damaged(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        decode(data, "key")


def test_heic_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"HEIC needs the extra heif: pip install 'virtue-pl\[heif\]'"):
        decode(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "key")


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4), end=st.floats(0, 1)
)
def test_a_spoiled_file_is_an_image_or_a_named_fault(format: str, changes: list[tuple[float, int]], end: float) -> None:
    data = bytearray(encoded(COLOURED, format))
    for position, value in changes:
        data[int(position * len(data))] = value
    try:
        assert decode(bytes(data[: int(end * len(data))]), "row 7", 10_000).dtype == torch.uint8
    except DataError as error:
        assert str(error).startswith("row 7") and "\n" not in str(error)


def test_a_programming_error_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "getexif", lambda self: undefined_name)  # type: ignore[name-defined]
    with pytest.raises(NameError):
        read_header(encoded(COLOURED, "PNG"), "key")


def test_a_path_is_no_text(tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo_without_suffix"):
        (tmp_path / name).write_bytes(encoded(COLOURED, "JPEG"))
        with pytest.raises(VirtueError, match=r"row 1: the text '.*' is the path of an image, expected words: give it"):
            build_rows([("a cat", None, None), (os.fspath(tmp_path / name), None, None)])
    (tmp_path / "words").write_text("a cat")
    assert not names_image(os.fspath(tmp_path / "words")) and not names_image("photos/none.jpg")


def test_a_prompt_of_an_exchanged_size_is_refused() -> None:
    image = torch.zeros(3, 9, 12, dtype=torch.uint8)
    exchanged = VisualPrompt.from_pixels(boxes=[[1, 1, 5, 8]], size=(12, 9))
    with pytest.raises(VirtueError, match=r"on an image of \(12, 9\), but its image has \(9, 12\)"):
        check_prompt_sizes([EmbeddingInput("a", (image,), exchanged, ("key",))])
    check_prompt_sizes(
        [EmbeddingInput("a", (image,), VisualPrompt.from_pixels([[1, 1, 5, 8]], size=(9, 12)), ("key",))]
    )
