"""Requests to rows: images that may be read, and regions as the visual prompts that Python makes of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from virtue_pl.preprocessing.requests import ImageAccess, decode_request, read_data_uri
from virtue_pl.types import VirtueError, VisualPrompt

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


URI = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


@pytest.mark.parametrize("units", ["pixel", "normalized"])
def test_regions_are_the_prompts_that_python_makes(units):
    scale = [1, 1] if units == "pixel" else [1 / 64, 1 / 32]
    box = [value * factor for value, factor in zip([16, 8, 32, 24], scale * 2, strict=True)]
    points = [[20 * scale[0], 10 * scale[1]], [60 * scale[0], 30 * scale[1]]]
    mask = torch.zeros(1, 32, 64, dtype=torch.bool)
    mask[0, :, :2] = True
    regions = [
        {"box": box},
        {"points": points, "labels": [1, 0]},
        {"mask": {"size": [32, 64], "counts": [0, 64, 32 * 62]}},
    ]
    rows = decode_request(
        {"image": URI, "text": "who?", "regions": regions, "units": units, "regions_as": "each"}, ImageAccess()
    )
    expected = [
        VisualPrompt.from_pixels(boxes=[[16, 8, 32, 24]], size=(32, 64)),
        VisualPrompt.from_pixels(points=[[20, 10], [60, 30]], labels=[1, 0], size=(32, 64)),
        VisualPrompt.from_pixels(masks=mask, size=(32, 64)),
    ]
    assert [row.region for row in rows] == [0, 1, 2] and {row.text for row in rows} == {"who?"}
    for row, prompt in zip(rows, expected, strict=True):
        for name in ("boxes", "points", "point_labels", "masks"):
            torch.testing.assert_close(getattr(row.prompts[0], name), getattr(prompt, name))
    (joint,) = decode_request({"image": URI, "regions": regions, "units": units}, ImageAccess())
    assert len(joint.prompts) == 3 and joint.text is None and joint.region is None


def test_the_size_is_that_of_the_upright_image():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    region = {"box": [0, 0, 32, 64]}
    (row,) = decode_request({"image": buffer.getvalue(), "regions": [region]}, ImageAccess())
    assert row.prompts[0].boxes.tolist() == [[0, 0, 1, 1]]


def test_data_uris_of_every_kind():
    data = png()
    assert read_data_uri(URI, "image") == data
    assert read_data_uri(f"data:;base64,{base64.urlsafe_b64encode(data).decode()}", "image") == data
    assert read_data_uri("DATA:image/svg+xml,%3Csvg%3E", "image") == b"<svg>"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"image": "https://example.org/a.png"}, "image: found the URL 'https://example.org/a.png', which is not read"),
        ({"image": "street.jpg"}, "image: found a path ('street.jpg'), expected a data URI"),
        ({"image": [URI, "/etc/passwd"], "text": "a"}, "image.1: found a path"),
        ({"image": "data:image/png;base64"}, "expected data:TYPE;base64,CONTENT"),
        ({"image": "data:image/png;base64,%%%"}, "image: the data URI is no base64"),
        ({"image": "data:image/png;base64,"}, "image: the data URI is empty"),
        ({"image": "data:image/png;base64," + "A" * 99999}, "image: a data URI of 99,999 characters"),
        ({"image": png(), "regions": [{"box": [0, 0, 65, 9]}]}, "regions.0: box [0, 0, 65, 9] lies outside the image"),
        ({"image": png(), "regions": [{"box": [0, 0, 1, 1]}, {"points": [[1, 40]]}]}, "regions.1: point [1, 40] lies"),
        ({"image": png(), "units": "normalized", "regions": [{"box": [0, 0, 2, 1]}]}, "expected coordinates from"),
        (
            {"image": png(), "regions": [{"mask": {"size": [64, 32], "counts": [2048]}}]},
            "regions.0.mask: mask of another",
        ),
        ({"image": png(), "regions": [{"mask": {"size": [32, 64], "counts": [3]}}]}, "its run lengths add up to 3"),
        ({"image": png(), "regions": [{"mask": {"size": [32, 64], "counts": [2048]}}]}, "regions.0: a mask is empty"),
    ],
)
def test_what_may_not_be_read_is_one_line_with_its_key(value, told):
    with pytest.raises(VirtueError) as caught:
        decode_request(value, ImageAccess(paths=False, max_bytes=70_000))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_url_is_read_by_what_was_given_for_it():
    (row,) = decode_request({"image": "https://example.org/a.png"}, ImageAccess(fetch=lambda url: url.encode()))
    assert row.images == (b"https://example.org/a.png",)
