"""Documents on their way to an embedding: named by a source, decoded beside the model, or left out for a reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.preprocessing.images import MAX_PIXELS, decode, pixel_key
from virtue_pl.types import VirtueError, VisualPrompt


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The pixels of an image with their content key.

    Example:
        >>> import torch
        >>> DecodedImage("0a1b", torch.zeros(3, 8, 12, dtype=torch.uint8)).size
        (8, 12)
    """

    key: str
    pixels: UInt8[Tensor, "3 height width"]

    @property
    def size(self) -> tuple[int, int]:
        """The image's (height, width), upright."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True, eq=False)
class Content:
    """Content of a document: its words, its images, and the regions of the first of them that are a row each.

    regions: None for a document that is one row as a whole; a region is a list of prompts, mostly of one.

    Example:
        >>> Content(text="a kettle").regions is None
        True
    """

    text: str = ""
    images: tuple[DecodedImage, ...] = ()
    regions: tuple[tuple[VisualPrompt, ...], ...] | None = None


@dataclass(frozen=True, eq=False)
class Document:
    """One document of a source, which is not read yet.

    name: its path below the source, or its key. image: where its image is, for people and pages; None for a text, or
    an image in no file. read: returns what it holds; raises DataError for what cannot be used. columns: further values.

    Example:
        >>> Document("captions/0", lambda: Content("a kettle")).read().text
        'a kettle'
    """

    name: str
    read: Callable[[], Content]
    image: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class ImageReader:
    """A reader of compressed images, which shares the pixels of one that several documents hold at a time.

    Example:
        >>> reader = ImageReader(max_pixels=25_000_000)
        >>> reader.decode(data, "street.jpg").size  # doctest: +SKIP
        (480, 640)
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self._in_use: WeakValueDictionary[str, DecodedImage] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageReader, (self.max_pixels,)

    def decode(self, data: bytes, name: str) -> DecodedImage:
        """Return the pixels of an image. Raises DataError, which names `name`, for damage, or one that is too large."""
        pixels = decode(data, name, self.max_pixels)
        return DecodedImage(pixel_key(pixels), pixels)

    def read(self, path: str, name: str, read_bytes: Callable[[], bytes]) -> DecodedImage:
        """Return the image at `path`, whose bytes `read_bytes` returns; those of one that is in use are not read."""
        found = self._in_use.get(path)
        if found is None:
            self._in_use[path] = found = self.decode(read_bytes(), name)
        return found


def decode_ahead(
    documents: Iterable[Document], depth: int, threads: int, check: Callable[[Content], None]
) -> Iterator[tuple[Document, Content | VirtueError]]:
    """Yield each document with what it holds, or with why it cannot be used, in order.

    At most `depth` documents are decoded ahead by `threads` threads, however many there are. check: raises VirtueError
    for content that cannot be embedded.
    """

    def read(document: Document) -> Content | VirtueError:
        try:
            content = document.read()
            check(content)
            return content
        except VirtueError as error:
            return error

    remaining = iter(documents)
    pool = ThreadPoolExecutor(threads)
    pending: deque[tuple[Document, Future[Content | VirtueError]]] = deque()
    try:
        pending.extend((document, pool.submit(read, document)) for document in islice(remaining, depth))
        while pending:
            document, found = pending.popleft()
            content = found.result()
            with suppress(StopIteration):
                following = next(remaining)
                pending.append((following, pool.submit(read, following)))
            yield document, content
    finally:
        pool.shutdown(cancel_futures=True)
