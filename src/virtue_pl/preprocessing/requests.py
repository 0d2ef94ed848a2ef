"""Requests to the rows that an embedder encodes: images by data URI, path or URL, regions as visual prompts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import torch

from virtue_pl.preprocessing.image_sources import ImageSource, KeyedPixels, keyed_pixels
from virtue_pl.preprocessing.images import MAX_PIXELS, read_bytes, read_header
from virtue_pl.preprocessing.segmentations import decode_segmentation
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt
from virtue_pl.types.prompt_values import describe, size_of

if TYPE_CHECKING:
    from virtue_pl.types.requests import EmbeddingRequest, RegionPrompt

DATA_URI, IMAGE_URIS = "data:", ("data:image/", "data:image;base64,")
MAX_BYTES = 64 << 20
"""The most bytes of an image in a data URI."""


@dataclass(frozen=True)
class ImageAccess:
    """Limits of the images that a request may name.

    paths: whether files of this machine are read. fetch: returns what a URL holds, and raises VirtueError for one that
    is not allowed; without it every URL is refused. recall: returns the image that was last sent under a uuid, and
    raises VirtueError for one that it has not; without it none is there. take_mask: called with the pixels of all
    regions' masks before they are decoded, and may raise. max_pixels, max_bytes: limits of an image.

    Example:
        >>> ImageAccess(paths=False).open("street.jpg", "image")
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: image: found a path ('street.jpg'), expected a data URI: ...
    """

    paths: bool = True
    fetch: Callable[[str], bytes] | None = None
    recall: Callable[[str], KeyedPixels] | None = None
    take_mask: Callable[[int], None] | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES

    def open(self, image: Any, name: str) -> Any:
        """Return an image in a form that `to_image` takes: bytes of a data URI or a URL, anything else as it is.

        Raises VirtueError, which names `name`, for what may not be read.
        """
        if not isinstance(image, str | Path):
            return image
        text = str(image)
        if is_data_uri(text):
            return read_data_uri(text, name, self.max_bytes)
        if "://" in text:
            if self.fetch is None:
                raise VirtueError(
                    f"{name}: found the URL {describe(text)}, which is not read: give the image itself, as a data URI"
                    " or a file, or allow its host"
                )
            return self.fetch(text)
        if not self.paths:
            raise VirtueError(
                f"{name}: found a path ({describe(text)}), expected a data URI: files of this machine are not read here"
            )
        return image

    def open_recalled(self, uuid: str) -> KeyedPixels:
        """Return the image that was last sent under a uuid. Raises VirtueError where there is none."""
        if self.recall is None:
            raise VirtueError(f"uuid: found {describe(uuid)} without an image, expected the image: none is kept here")
        return self.recall(uuid)


def is_data_uri(text: str) -> bool:
    """Return whether the name of an image is a data URI."""
    return text[: len(DATA_URI)].lower() == DATA_URI


def is_image_uri(text: str) -> bool:
    """Return whether a text is the data URI of an image, where words may stand, too, such as "data: what is it?".

    Example:
        >>> [is_image_uri(text) for text in ("data:image/png;base64,iVBO", "data:image;base64,iVBO", "data: what?")]
        [True, True, False]
    """
    return text[: max(map(len, IMAGE_URIS))].lower().startswith(IMAGE_URIS)


def read_data_uri(uri: str, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a data URI, in base64 or percent-encoded.

    Raises VirtueError, which names `name`, for damage, or more than `max_bytes`.

    Example:
        >>> read_data_uri("data:text/plain;base64,aGVsbG8=", "image")
        b'hello'
    """
    header, comma, content = uri.partition(",")
    if not comma:
        raise VirtueError(f"{name}: found {describe(uri)}, expected data:TYPE;base64,CONTENT")
    in_base64 = header.lower().endswith(";base64")
    if len(content) > max_bytes * (4 / 3 if in_base64 else 3) + 4:
        raise VirtueError(f"{name}: a data URI of {len(content):,} characters, more than {max_bytes:,} bytes make")
    if not in_base64:
        return unquote_to_bytes(content)
    try:
        data = base64.b64decode(content.translate(URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VirtueError(f"{name}: the data URI is no base64 ({error})") from error
    if not data:
        raise VirtueError(f"{name}: the data URI is empty, expected an image")
    return data


URL_SAFE = str.maketrans("-_", "+/", " \r\n")
"""Letters of URL-safe base64 to those of the plain one; white space is taken out."""


@dataclass(frozen=True, eq=False)
class RequestRow:
    """One row that a request asks for, as `Embedder.encode` takes it.

    region: the number of the region that the row is of, where there is one row for each; None otherwise.

    Example:
        >>> RequestRow("a cat", (), ()).region is None
        True
    """

    text: str | None
    images: tuple[Any, ...]
    prompts: tuple[VisualPrompt, ...]
    region: int | None = None


def decode_request(request: EmbeddingRequest | Mapping[str, Any], access: ImageAccess) -> list[RequestRow]:
    """Return the rows of a request: one, or one for each region.

    Raises VirtueError, which names the key, for a value that is not allowed, a region outside its image, or a mask of
    another size.

    Example:
        >>> image = torch.zeros(3, 32, 64, dtype=torch.uint8)
        >>> (row,) = decode_request({"image": image, "regions": [{"box": [16, 8, 32, 24]}]}, ImageAccess())
        >>> row.prompts[0].boxes
        tensor([[0.2500, 0.2500, 0.5000, 0.7500]])
    """
    from virtue_pl.types.requests import EmbeddingRequest, read_request

    if not isinstance(request, EmbeddingRequest):
        request = read_request(EmbeddingRequest, request)
    given = request.images
    names = ["image" if len(given) == 1 else f"image.{number}" for number in range(len(given))]
    images = tuple(access.open(image, name) for image, name in zip(given, names, strict=True))
    if not given and request.uuid is not None:
        images, names = (access.open_recalled(request.uuid),), ["image"]
    text = request.full_text or None
    if not request.regions:
        return [RequestRow(text, images, ())]
    size = upright_size(images[0], names[0], access.max_pixels)
    if access.take_mask is not None:
        access.take_mask(size[0] * size[1] * sum(region.mask is not None for region in request.regions))
    prompts = [
        decode_region(region, size, request.units, f"regions.{number}") for number, region in enumerate(request.regions)
    ]
    if request.regions_as == "joint":
        return [RequestRow(text, images, tuple(prompts))]
    return [RequestRow(text, images, (prompt,), number) for number, prompt in enumerate(prompts)]


def decode_inputs(rows: Sequence[RequestRow], max_pixels: int = MAX_PIXELS) -> list[EmbeddingInput]:
    """Return a request's rows as inputs with their pixels; an image that several rows share is decoded once.

    Raises DataError for what is no image, is damaged, or has more than `max_pixels`.

    Example:
        >>> image = torch.zeros(3, 32, 64, dtype=torch.uint8)
        >>> (item,) = decode_inputs(decode_request({"image": image, "text": "What is this?"}, ImageAccess()))
        >>> item.text, item.images[0].shape
        ('What is this?', torch.Size([3, 32, 64]))
    """
    decoded: dict[int, KeyedPixels] = {}
    items = []
    for row in rows:
        found = []
        for number, image in enumerate(row.images):
            if isinstance(image, KeyedPixels):
                decoded[id(image)] = image
            if id(image) not in decoded:
                name = "image" if len(row.images) == 1 else f"image.{number}"
                decoded[id(image)] = keyed_pixels(ImageSource(image, name, max_pixels))
            found.append(decoded[id(image)])
        first, *further = row.prompts or (VisualPrompt(),)
        pixels, keys = tuple(each.pixels for each in found), tuple(each.key for each in found)
        items.append(EmbeddingInput(row.text or "", pixels, first, keys, (), tuple(further)))
    return items


def upright_size(image: Any, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return an image's (height, width), upright, of which a file's header alone is read."""
    if isinstance(image, str | Path | bytes):
        header = read_header(image if isinstance(image, bytes) else read_bytes(image, name), name, max_pixels)
        return header.height, header.width
    return size_of(image.pixels if isinstance(image, KeyedPixels) else image)


def decode_region(region: RegionPrompt, size: tuple[int, int], units: str, name: str) -> VisualPrompt:
    """Return a region as a visual prompt on an image of `size` = (height, width).

    Raises VirtueError, which names `name`, for coordinates outside the image, and for a mask that does not fit.
    """
    mask = None
    if region.mask is not None:
        found = decode_segmentation(region.mask.model_dump(), f"{name}.mask", size)
        mask = torch.from_numpy(found.copy())[None]
    boxes = [] if region.box is None else [list(region.box)]
    points = [list(point) for point in region.points or ()]
    if units == "normalized":
        height, width = size
        check_fractions([*boxes, *points], name)
        boxes = [[x1 * width, y1 * height, x2 * width, y2 * height] for x1, y1, x2, y2 in boxes]
        points = [[x * width, y * height] for x, y in points]
    try:
        return VisualPrompt.from_pixels(boxes, points, region.labels, mask, size=size)
    except VirtueError as error:
        raise VirtueError(f"{name}: {error}") from error


def check_fractions(rows: list[list[float]], name: str) -> None:
    """Raise VirtueError for normalised coordinates outside [0, 1]."""
    for row in rows:
        if not all(0 <= value <= 1 for value in row):
            raise VirtueError(f"{name}: found {row}, expected coordinates from 0 to 1: units is 'normalized'")
