"""The rows that `Embedder.encode` is given: texts, images and prompts side by side, in lists or in any iterables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from virtue_pl.preprocessing.image_formats import CONVERTED, EXTENSIONS, SIGNATURE_LENGTH, find_format
from virtue_pl.preprocessing.image_sources import DecodedImages, ImageSource
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.preprocessing.requests import ImageAccess, decode_request, is_image_uri
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt, join_instruction
from virtue_pl.types.prompt_values import are_exchanged

SINGLE = (str, bytes, Path, Image.Image, np.ndarray, Tensor, VisualPrompt, Mapping, Set)
"""Types of one value that all rows share, though some can be iterated; a mapping or a set is never a column."""
IMAGE_SUFFIXES = {f".{extension}" for extension in ("jpeg", "tiff", "heif", *(EXTENSIONS | CONVERTED).values())}
MAX_PATH = 4096
"""Longer texts are no paths."""
ENDED = object()
"""Stands for the value of an iterable that has no more."""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of `Embedder.encode`, whose images are not decoded yet.

    Example:
        >>> (row,) = build_rows([("a cat", None, None)])
        >>> row.text, row.images
        ('a cat', ())
    """

    text: str
    images: tuple[ImageSource, ...]
    prompts: tuple[VisualPrompt, ...]

    def to_input(self, images: DecodedImages) -> EmbeddingInput:
        """Return the row as an input with its images' keys, and placeholders instead of their pixels."""
        found = [images.identities[source] for source in self.images]
        first, *further = self.prompts or (VisualPrompt(),)
        pixels, keys = tuple(each.placeholder for each in found), tuple(each.key for each in found)
        return EmbeddingInput(self.text, pixels, first, keys, (), tuple(further))


def is_list(value: Any) -> bool:
    """Return whether a value has one entry a row: a list, a tuple, or images stacked in one array."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 4)


def is_stream(value: Any) -> bool:
    """Return whether a value is an iterable that gives one entry a row after the other, such as a generator."""
    return not is_list(value) and not isinstance(value, SINGLE) and isinstance(value, Iterable)


class Columns:
    """The columns of `Embedder.encode` as entries (text, image, prompt), one a row; a single value is in all rows.

    Raises VirtueError, here for lists and else when it is found, where one column is longer than another.

    Example:
        >>> columns = Columns(texts=["a cat", "a dog"], images=None, prompts=None)
        >>> columns.streamed, list(columns.windows(1))
        (False, [[('a cat', None, None), ('a dog', None, None)]])
    """

    def __init__(self, texts: Any, images: Any, prompts: Any) -> None:
        self.columns = {"texts": texts, "images": images, "prompts": prompts}
        self.streamed = any(map(is_stream, self.columns.values()))
        self.lengths = {name: len(value) for name, value in self.columns.items() if is_list(value)}
        if len(set(self.lengths.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in self.lengths.items())
            raise VirtueError(f"encode was given {found}, expected as many of each, or one alone for all rows")

    def windows(self, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield all rows of lists at once; else `size` rows after the other, of which none is asked for early."""
        rows = self.rows()
        if not self.streamed:
            yield list(rows)
            return
        while window := list(islice(rows, size)):
            yield window

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the entry of each row."""
        iterators = {name: iter(self.columns[name]) for name in self.columns if self.is_column(name)}
        if not iterators:
            yield tuple(self.columns.values())
            return
        count = 0
        while True:
            entry = {name: next(iterator, ENDED) for name, iterator in iterators.items()}
            ended = [name for name, value in entry.items() if value is ENDED]
            if ended and len(ended) < len(entry):
                longer = ", ".join(name for name in entry if name not in ended)
                raise VirtueError(
                    f"encode was given {count} {' and '.join(ended)}, and more {longer}, expected as many of each, or"
                    " one alone for all rows"
                )
            if ended:
                return
            count += 1
            yield tuple((self.columns | entry).values())

    def is_column(self, name: str) -> bool:
        """Return whether an argument has one entry a row."""
        return is_list(self.columns[name]) or is_stream(self.columns[name])


def build_rows(
    entries: Iterable[Sequence[Any]], max_pixels: int = MAX_PIXELS, start: int = 0, instruction: str = ""
) -> list[Row]:
    """Return a row for each (text, image or images, prompt or prompts); an image that occurs again is one source.

    Raises VirtueError for an empty row, a prompt without an image, or values of another type.

    Args:
        entries: the rows' values, see `Embedder.encode`.
        max_pixels: the largest image that is decoded.
        start: the number of the first row, for messages.
        instruction: stands before the text of each row.
    """
    sources: dict[Any, ImageSource] = {}
    access = ImageAccess(max_pixels=max_pixels)
    expanded = expand_entries(entries, access, start)
    return [
        build_row(number, add_instruction(instruction, text), images, prompts, sources, access)
        for number, (text, images, prompts) in enumerate(expanded, start)
    ]


def add_instruction(instruction: str, text: Any) -> Any:
    """Return a text behind an instruction; another value than a text, and None without an instruction, as it is."""
    return join_instruction(instruction, text or "") if instruction and isinstance(text, str | None) else text


def expand_entries(entries: Iterable[Sequence[Any]], access: ImageAccess, start: int) -> Iterator[tuple[Any, ...]]:
    """Yield (text, images, prompts) of each entry, and of each region where a request asks for one row each.

    Raises VirtueError, which names the entry, for a request with something wrong, or with columns beside it.
    """
    for number, (first, images, prompts) in enumerate(entries, start):
        if isinstance(first, str | None):
            is_image = images is None and first is not None and is_image_uri(first)
            yield (None, first, prompts) if is_image else (first, images, prompts)
        elif is_request(first):
            if images is not None or prompts is not None:
                raise VirtueError(f"row {number} is a request, expected its image and regions within it")
            try:
                rows = decode_request(first, access)
            except VirtueError as error:
                raise VirtueError(f"row {number}: {error}") from error
            yield from ((row.text, list(row.images) or None, list(row.prompts) or None) for row in rows)
        elif images is None and isinstance(first, bytes | Path | Image.Image | np.ndarray | Tensor):
            yield None, first, prompts
        else:
            yield first, images, prompts


def is_request(value: Any) -> bool:
    """Return whether a value is a request, as a mapping or read already."""
    from virtue_pl.types.requests import EmbeddingRequest

    return isinstance(value, Mapping | EmbeddingRequest)


def build_row(
    number: int, text: str | None, images: Any, prompts: Any, sources: dict[Any, ImageSource], access: ImageAccess
) -> Row:
    """Return one row; its images are taken from `sources`, or added to it."""
    images = [image for image in (images if is_list(images) else [images]) if image is not None]
    prompts = [prompt for prompt in (prompts if is_list(prompts) else [prompts]) if prompt is not None]
    check_row(number, text, images, prompts)
    found = []
    for position, image in enumerate(images):
        name = f"row {number}" if len(images) == 1 else f"row {number}, image {position}"
        identity = str(image) if isinstance(image, str | Path) else id(image)
        if identity not in sources:
            sources[identity] = ImageSource(access.open(image, name), name, access.max_pixels)
        found.append(sources[identity])
    return Row(text or "", tuple(found), tuple(prompts))


def check_row(number: int, text: str | None, images: list[Any], prompts: list[Any]) -> None:
    """Raise VirtueError for a row that is empty, has a prompt without an image, or values of another type."""
    if not text and not images:
        raise VirtueError(f"row {number} is empty, expected a text, an image, or both")
    if prompts and not images:
        raise VirtueError(
            f"row {number} has a visual prompt but no image to point at: give `images`, or leave its prompt out"
        )
    if isinstance(text, str) and names_image(text):
        raise VirtueError(
            f"row {number}: the text {text!r} is the path of an image, expected words: give it as `images`; where its"
            " words are meant, give EmbeddingInput(text) to `Embedder.embed`"
        )
    for value, expected in [(text or "", str), *((prompt, VisualPrompt) for prompt in prompts)]:
        if not isinstance(value, expected):
            raise VirtueError(
                f"row {number}: found {type(value).__name__}, expected {expected.__name__}: prompts in pixels are made"
                " by VisualPrompt.from_pixels"
            )


def names_image(text: str) -> bool:
    """Return whether a text is the path of an image's file."""
    if not text or len(text) > MAX_PATH or "\n" in text or "\0" in text or not os.path.isfile(text):
        return False
    if Path(text).suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open(text, "rb") as file:
            return find_format(file.read(SIGNATURE_LENGTH)) is not None
    except OSError:
        return False


def check_prompt_sizes(items: Sequence[EmbeddingInput], start: int = 0) -> None:
    """Raise VirtueError for a prompt in pixels of an image whose height and width are this one's exchanged.

    start: the number of the first row, for messages.
    """
    for number, item in enumerate(items, start):
        for prompt in item.prompts if item.images else ():
            size = (item.images[0].shape[1], item.images[0].shape[2])
            if prompt.size is not None and are_exchanged(prompt.size, size):
                raise VirtueError(
                    f"row {number} has a visual prompt on an image of {prompt.size}, but its image has {size} (height,"
                    " width): PIL's `image.size` is (width, height), and a phone's image may be turned; give"
                    " VisualPrompt.from_pixels the image itself, as `image`"
                )


def decode_rows(entries: Sequence[Sequence[Any]], max_pixels: int = MAX_PIXELS) -> list[EmbeddingInput]:
    """Return rows as inputs with their pixels, all in memory at once; see `build_rows`."""
    return decode_items(build_rows(entries, max_pixels))


def decode_items(rows: Sequence[Row]) -> list[EmbeddingInput]:
    """Return rows as inputs with their pixels, all in memory at once."""
    sources = list(distinct_images(rows))
    images = DecodedImages(sources, capacity=max(1, len(sources)))
    return images.load([row.to_input(images) for row in rows])


def distinct_images(rows: Sequence[Row]) -> dict[ImageSource, None]:
    """Return the images of rows, each once, in the order of their first use."""
    return dict.fromkeys(source for row in rows for source in row.images)
