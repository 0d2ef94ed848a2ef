"""Documents in one's own rows and in requests: each image or text once, or every region with the words beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from virtue_pl.apps.encoding.documents import Content, DecodedImage, Document, ImageReader
from virtue_pl.data.conversion.own_sources import OwnSource
from virtue_pl.data.conversion.text_rows import SourceRow
from virtue_pl.data.formats.own_regions import OwnRegion, decode_runs, read_region
from virtue_pl.data.formats.own_rows import OwnItem, OwnRow, RowOptions, read_row
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.preprocessing.requests import ImageAccess, decode_request, is_data_uri
from virtue_pl.types import DataError, VirtueError, VisualPrompt
from virtue_pl.types.requests import EmbeddingRequest, read_request

REQUEST_KEYS = frozenset({"regions", "regions_as", "uuid"})
"""Keys by which a row is recognised as a request; one whose image is a data URI is, too."""


@dataclass(frozen=True)
class RowReader:
    """A reader of one source's rows.

    name: of the source. root: the folder that paths are named in. The others are those of `own_documents`. Images that
    are inside of a row go with it, by the names that they have there.

    Example:
        >>> images, seen = ImageReader(), set()  # doctest: +SKIP
        >>> reader = RowReader("train", Path("data"), files, images, "images", RowOptions(), seen)
    """

    name: str
    root: Path
    files: ImageFiles
    images: ImageReader
    what: str
    options: RowOptions
    seen: set[bytes]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "seen": set()}  # documents are read without it, and it grows with the source

    def documents(self, row: SourceRow) -> Iterator[Document]:
        """Yield a row's documents; a row that cannot be read is one that cannot be read."""
        key = f"{self.name}/{row.number}"
        if row.problem:
            yield unreadable(key, f"{row.problem} ({row.where})")
        elif is_request(row.values):
            yield from self.of_request(row, key)
        else:
            embedded: dict[str, bytes] = {}
            try:
                own = read_row(row.values, key, self.options, partial(store, embedded))
            except DataError as error:
                yield unreadable(key, f"{error.problem} ({row.where})")
                return
            own = replace(own, query=replace(own.query, image_size=row.image_size))
            find = {"images": self.whole_images, "texts": self.texts, "regions": self.regions}[self.what]
            yield from find(own, key, embedded)

    def whole_images(self, row: OwnRow, key: str, embedded: Mapping[str, bytes]) -> Iterator[Document]:
        """Yield a document for each image of a row that no row before it has."""
        for path in dict.fromkeys(path for item in row.items for path in item.images):
            where = f"{key}/{path}" if path in embedded else self.where(path)
            if self.is_new(where):
                name = where if path in embedded else self.name_of(path, where)
                read = partial(self.read_whole, path, name, embedded)
                yield Document(name, read, None if path in embedded else where)

    def read_whole(self, path: str, name: str, embedded: Mapping[str, bytes]) -> Content:
        """Return an image alone. Raises DataError for damage."""
        return Content(images=(self.read(path, name, embedded),))

    def texts(self, row: OwnRow, key: str, embedded: Mapping[str, bytes]) -> Iterator[Document]:
        """Yield a document for each text of a row's answers, or of its query where it has none, that is a new one."""
        answers = [item for item in row.items[1:] if item.text]
        for number, item in enumerate(answers or [row.query]):
            if item.text and self.is_new(item.text):
                name = f"{key}/{number}" if answers else key
                yield Document(name, partial(Content, item.text))

    def regions(self, row: OwnRow, key: str, embedded: Mapping[str, bytes]) -> Iterator[Document]:
        """Yield a document for each item of a row that has a region."""
        prompted = [(number, item) for number, item in enumerate(row.items) if item.has_region]
        if not prompted:
            yield unreadable(key, "no region: the row has no box, point or mask")
        target = row.target.text if row.target else None
        for number, item in prompted:
            name = f"{key}/{number}" if number else key
            read = partial(self.read_regions, item, name, embedded)
            first = item.images[0]
            where = None if first in embedded else self.where(first)
            yield Document(name, read, where, {"target": None if number else target})

    def read_regions(self, item: OwnItem, name: str, embedded: Mapping[str, bytes]) -> Content:
        """Return an item with its regions. Raises DataError for damage, or a region that is impossible."""
        images = tuple(self.read(path, name, embedded) for path in item.images)

        def read_levels(path: str) -> UInt8[np.ndarray, "3 height width"]:
            return self.read(path, name, embedded).pixels.numpy()

        found = read_region(item, name, images[0].size, read_levels)
        return Content(item.text, images, tuple((prompt,) for prompt in to_prompts(found, images[0].size)))

    def of_request(self, row: SourceRow, key: str) -> Iterator[Document]:
        """Yield the document that a request is."""
        try:
            request = read_request(EmbeddingRequest, dict(row.values))
        except VirtueError as error:
            yield unreadable(key, f"no request: {error} ({row.where})")
            return
        missing = {
            "images": "" if request.images else "no image",
            "texts": "" if request.full_text else "no text",
            "regions": "" if request.regions else "no region",
        }[self.what]
        if missing:
            yield unreadable(key, f"{missing}: the request has none ({row.where})")
            return
        first = str(request.images[0]) if request.images else ""
        where = None if is_data_uri(first) or not first or self.what == "texts" else self.where(first)
        yield Document(key, partial(self.read_request, request, key), where)

    def read_request(self, request: EmbeddingRequest, key: str) -> Content:
        """Return what a request holds, its images and its regions only where they are encoded.

        Raises DataError for what cannot be used.
        """
        if self.what == "texts":
            return Content(request.full_text)
        access = ImageAccess(paths=False, max_pixels=self.images.max_pixels)
        try:
            images = [
                access.open(image, "image") if is_data_uri(str(image)) or "://" in str(image) else None
                for image in request.images
            ]
            data = [
                self.files.read(str(path), key) if image is None else image
                for image, path in zip(images, request.images, strict=True)
            ]
            as_regions = {"regions_as": "each"} if self.what == "regions" else {"regions": [], "regions_as": "joint"}
            rows = decode_request(request.model_copy(update={"image": data, **as_regions}), access)
        except DataError:
            raise
        except VirtueError as error:
            raise DataError(key, f"no request: {error}") from error
        decoded = tuple(self.images.decode(each, key) for each in data)
        regions = tuple(row.prompts for row in rows) if self.what == "regions" else None
        return Content(request.full_text, decoded, regions)

    def read(self, path: str, name: str, embedded: Mapping[str, bytes]) -> DecodedImage:
        """Return an image, inside of its row or in a file. Raises DataError for damage."""
        if path in embedded:
            return self.images.decode(embedded[path], name)
        return self.images.read(self.where(path), name, lambda: self.files.read(path, name))

    def where(self, path: str) -> str:
        """Return the path of an image's file, where there is one; else its name."""
        bare = path.removeprefix("images/")
        found = (folder / bare for folder in self.files.folders if (folder / bare).is_file())
        return str(next((file.absolute() for file in found), path))

    def name_of(self, path: str, where: str) -> str:
        """Return an image's path below the source, where it is there; else the path that its row has."""
        file, root = Path(where), self.root.absolute()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else path

    def is_new(self, name: str) -> bool:
        """Return whether an image or a text comes for the first time."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if digest in self.seen:
            return False
        self.seen.add(digest)
        return True


def own_documents(
    source: OwnSource,
    root: Path,
    files: ImageFiles,
    images: ImageReader,
    what: str,
    options: RowOptions,
    seen: set[bytes],
) -> Iterator[Document]:
    """Yield the documents of a source's rows.

    Args:
        source: the rows; each may be one of one's own data, or a request.
        root: the folder that paths are named in.
        files: where images are found.
        images: decodes them.
        what: "images" (each image once, alone), "texts" (each text of answers once, or else of queries) or "regions"
            (every region, with the words and images beside it; several boxes without points or masks are a region
            each). Of requests: each as it is, without its regions, its text alone, or with a row for each region.
        options: what holds for rows that do not say it.
        seen: digests of the images or texts that have come before, which grows.
    """
    reader = RowReader(source.name, root, files, images, what, options, seen)
    for row in source.rows():
        yield from reader.documents(row)


def is_request(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a request, not one of one's own data."""
    image = row.get("image")
    images = image if isinstance(image, list) else [image]
    return bool(REQUEST_KEYS & set(row)) or any(isinstance(each, str) and is_data_uri(each) for each in images)


def store(embedded: dict[str, bytes], data: bytes, path: str) -> str:
    """Add an image that is inside of a row, and return its name. Raises ValueError for no bytes."""
    if not data:
        raise ValueError("an image of 0 bytes")
    name = path or hashlib.blake2b(data, digest_size=8).hexdigest()
    if embedded.setdefault(name, data) != data:
        name = f"{hashlib.blake2b(data, digest_size=8).hexdigest()}-{path}"
        embedded[name] = data
    return name


def unreadable(key: str, problem: str) -> Document:
    """Return a document that cannot be read, for a reason."""

    def fail() -> Content:
        raise DataError(key, problem)

    read: Callable[[], Content] = fail
    return Document(key, read)


def to_prompts(region: OwnRegion, size: tuple[int, int]) -> list[VisualPrompt]:
    """Return an item's regions: one for each of several boxes that stand alone, or else one of all that is given."""
    if len(region.boxes) > 1 and not region.points and region.mask is None:
        return [VisualPrompt.from_pixels([box], size=size) for box in region.boxes]
    mask = None if region.mask is None else torch.from_numpy(decode_runs(region.mask).copy())[None]
    labels = region.labels if region.points else None
    return [VisualPrompt.from_pixels(region.boxes, region.points, labels, mask, size=size)]
