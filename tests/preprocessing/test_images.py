"""Decoding images: right pixels, and nothing decoded that should not be."""

from __future__ import annotations

import io
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from virtue_pl.preprocessing.images import decode, read_header, resize_bicubic, resize_to_square, to_image
from virtue_pl.types import DataError, PixelLimit


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int = 6, width: int = 9, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


@pytest.mark.parametrize(("format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_pixels_are_those_of_the_file(format: str, extension: str) -> None:
    data = encoded(noise(), format)
    image = decode(data, "key")
    assert image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous()
    assert torch.equal(image, torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1))
    assert read_header(data, "key") == (extension, 6, 9)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    assert decode(encoded(noise().convert(mode), format), "key").shape == (3, 6, 9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), "PNG", exif=exif)
    image = decode(data, "key")
    assert tuple(image.shape[1:]) == ((6, 9) if orientation < 5 else (9, 6))
    assert read_header(data, "key")[1:] == tuple(image.shape[1:])
    if orientation == 3:
        assert torch.equal(image, decode(encoded(noise(), "PNG"), "key").flip(1, 2))


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", encoded(noise(), "JPEG")[:-60], encoded(noise(64, 64), "PNG")[:200]],
)
def test_what_cannot_be_decoded_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^image 7: damaged image") as caught:
        decode(data, "image 7")
    assert caught.value.key == "image 7"


def test_a_large_image_is_refused_from_its_header() -> None:
    data = encoded(Image.new("1", (3000, 2000)), "PNG")
    with pytest.raises(DataError, match="3000x2000 pixels, more than max_pixels = 5000000"):
        decode(data, "key", max_pixels=5_000_000)


@pytest.mark.parametrize("length", [6_000, 12_000, 60_000])
def test_an_image_that_claims_a_huge_size_is_never_decoded(length: int) -> None:
    data = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + length.to_bytes(4, "big") * 2 + data[24:29]
    with pytest.raises(DataError, match=r"^key: image too large"):
        decode(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:], "key")


RECORDED_DOWN_FIRST = {
    "G_000000075034.jpg": ((122, 184), (112, 196)),
    "G_000000097840.jpg": ((96, 240), (84, 252)),
}
"""Recorded images of RefCOCOg that grow across and shrink down: Pillow 13, with which they were recorded, resized
them down first (golden/README.md).
"""
SIZES = [*RECORDED_DOWN_FIRST.values(), ((200, 600), (196, 588)), ((170, 230), (168, 224)), ((188, 126), (196, 112))]
SIZES += [((80, 78), (90, 100)), ((90, 80), (70, 75))]


def resize_in_order(image: torch.Tensor, after: tuple[int, int], down_first: bool) -> torch.Tensor:
    (height, width), pillow_image = after, Image.fromarray(image.permute(1, 2, 0).numpy())
    between = (pillow_image.width, height) if down_first else (width, pillow_image.height)
    found = pillow_image.resize(between, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(found)).permute(2, 0, 1)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_levels_are_rounded_between_the_two_passes_of_which_across_goes_first(before, after) -> None:
    """Whatever grows or shrinks, and as Pillow up to 12 does it in one call."""
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *before), dtype=np.uint8))
    found, down_first = resize_bicubic(image, after), resize_in_order(image, after, True)
    assert torch.equal(found, resize_in_order(image, after, False))
    one_call = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(after[::-1], Image.Resampling.BICUBIC)
    assert torch.equal(found, torch.from_numpy(np.array(one_call)).permute(2, 0, 1))
    assert 0 < (found.int() - down_first.int()).abs().max() < 40, "the order shows"


@pytest.mark.parametrize("before", [(2000, 10), (1000, 10), (1010, 10), (5000, 27), (10, 2000)])
def test_an_image_of_extreme_shape_is_resized_as_by_pillow_in_one_call(before) -> None:
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *before), dtype=np.uint8))
    for after in ((56, 56), (28, 700), (6000, 30)):
        one_call = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(after[::-1], Image.Resampling.BICUBIC)
        assert torch.equal(resize_bicubic(image, after), torch.from_numpy(np.array(one_call)).permute(2, 0, 1))


@pytest.mark.parametrize("after", [(90, 80), (70, 80), (90, 100)])
def test_a_pass_that_changes_nothing_is_left_out(after) -> None:
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 90, 80), dtype=np.uint8))
    assert torch.equal(resize_bicubic(image, after), resize_in_order(image, after, True))
    assert torch.equal(resize_to_square(image, 70), resize_bicubic(image, (70, 70)))


def test_a_limit_names_the_option_that_sets_it() -> None:
    data = encoded(Image.new("1", (300, 200)), "PNG")
    limit = pickle.loads(pickle.dumps(PixelLimit(50_000, "--max-pixels")))
    with pytest.raises(DataError, match=r"300x200 pixels, more than --max-pixels = 50000$"):
        decode(data, "key", limit)
    assert PixelLimit(limit, "another").option == "--max-pixels"
    assert (limit, repr(limit), f"{limit}", PixelLimit(7).option) == (50_000, "50000", "50000", "max_pixels")
    with pytest.raises(DataError, match=r"300x200 pixels, more than max_pixels = 59999$"):
        read_header(data, "key", 59_999)
    assert decode(data, "key", 60_000).shape == (3, 200, 300)


@pytest.mark.parametrize("pillow_limit", [20, 1000])
def test_no_limit_of_pillows_own_stands_beside_the_option(pillow_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above its limit, and refuses above twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    for format in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise(30, 50), format)
        assert decode(data, "key", 1500).shape == (3, 30, 50)
        with pytest.raises(DataError, match="50x30 pixels, more than max_pixels = 1499"):
            decode(data, "key", 1499)


def test_several_images_in_one_jpeg_are_the_first() -> None:
    """A phone's file (MPO) is a JPEG with others behind it."""
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(4, 4)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode(data, "key").shape == (3, 6, 9) and read_header(data, "key") == ("jpg", 6, 9)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "PNG")[:-30])
    with pytest.raises(DataError, match=rf"^row 3 \({path}\): damaged image"):
        to_image(path, "row 3")
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(DataError, match=rf"^row 3: the image {path} cannot be read \(Permission denied\)$"):
        to_image(str(path), "row 3")
