"""Queries of a search: requests as the command line and JSON Lines give them, embedded by the model of an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from virtue_pl.types import MAX_PIXELS, VirtueError

if TYPE_CHECKING:
    import numpy as np

    from virtue_pl.embedder import Embedder
    from virtue_pl.preprocessing.requests import ImageAccess, RequestRow
    from virtue_pl.search.index import VectorIndex
    from virtue_pl.types.requests import EmbeddingRequest

SHORT = 60
"""The most characters of a query's words in its name."""


@dataclass(frozen=True, eq=False)
class Query:
    """One query of a search.

    request: what it was given as, a mapping with the keys of `EmbeddingRequest`. region: the number of its region,
    where the request asks for one query each. row: its words, image and regions, decoded; None where a server embedded
    it. vector: its embedding.

    Example:
        >>> Query({"text": "a cat", "image": "photos/street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}).name
        'street.jpg, box, a cat'
    """

    request: Mapping[str, Any]
    region: int | None = None
    row: RequestRow | None = None
    vector: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The query's words."""
        return " ".join(filter(None, (self.request.get("instruction"), self.request.get("text"))))

    @property
    def pointer(self) -> str:
        """The query's image, and the kinds of the prompts on it."""
        given = self.request.get("image")
        first = given[0] if isinstance(given, list | tuple) and given else given
        regions = self.request.get("regions") or []
        chosen = regions if self.region is None else regions[self.region : self.region + 1]
        kinds = [kind for key, kind in PROMPT_KINDS.items() if any(region.get(key) for region in chosen)]
        number = "" if self.region is None else f"region {self.region}"
        return ", ".join(filter(None, ("" if first is None else describe_image(first), number, " and ".join(kinds))))

    @property
    def name(self) -> str:
        """The query in a few words: its image, the kinds of its prompts, and its text."""
        short = self.text if len(self.text) <= SHORT else f"{self.text[: SHORT - 3]}..."
        return ", ".join(filter(None, (self.pointer, short)))


PROMPT_KINDS = {"box": "box", "points": "point", "mask": "mask"}
"""Kinds of a prompt by their keys in a region."""


def describe_image(image: Any) -> str:
    """Return the name of a request's image: of a path its last part."""
    return Path(image).name if isinstance(image, str | Path) and not str(image).startswith("data:") else "image"


def read_lines(lines: TextIO, name: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the requests of JSON Lines, one a line, as mappings with the numbers of their lines.

    Raises VirtueError, which names the line, for anything else, and for none.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise VirtueError(f'found {line.strip()[:40]}, expected a request, as {{"text": "a cup"}}')
            found.append((number, value))
        except (ValueError, RecursionError) as error:
            raise VirtueError(f"{name}, line {number} is no JSON: {error}") from error
        except VirtueError as error:
            raise VirtueError(f"{name}, line {number}: {error}") from error
    if not found:
        raise VirtueError(f"{name}: there are no requests, expected one a line as JSON")
    return found


def check_lines(lines: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> list[EmbeddingRequest]:
    """Return what `read_lines` has read as requests. Raises VirtueError, which names the line, for a wrong one."""
    from virtue_pl.types.requests import EmbeddingRequest, read_request

    found = []
    for number, value in lines:
        try:
            found.append(read_request(EmbeddingRequest, value))
        except VirtueError as error:
            raise VirtueError(f"{name}, line {number}: {error}") from error
    return found


def read_mask(path: Path) -> Mapping[str, Any]:
    """Return a mask's file as COCO's run lengths: an image that is black outside, or JSON of run lengths.

    Raises VirtueError for anything else.
    """
    if not path.is_file():
        raise VirtueError(f"--mask: there is no file {path}")
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise VirtueError(f"--mask: {path} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise VirtueError(f'--mask: {path} holds no run lengths, expected {{"size": [h, w], "counts": ...}}')
        return found
    from virtue_pl.preprocessing.image_formats import open_image, read_pixels
    from virtue_pl.preprocessing.segmentations import encode_mask

    name = f"--mask ({path})"
    with open_image(path.read_bytes(), name, MAX_PIXELS) as image:
        pixels: np.ndarray[Any, Any] = read_pixels(image, name)
        return encode_mask(pixels.max(axis=2) > 0)


def embed_queries(
    embedder: Embedder, index: VectorIndex, requests: Sequence[EmbeddingRequest], access: ImageAccess | None = None
) -> list[Query]:
    """Return a query for each embedding that the requests ask for, of the length of the index's vectors.

    Raises VirtueError where the embedder's model is not the index's, and, naming the query, for a wrong request.
    """
    import numpy as np

    index.check_query_model(embedder.fingerprint(), embedder.embed_dim)
    pairs = list(decode_requests(requests, access))
    rows = [row for _, row in pairs]
    dim = index.facts.dim
    vectors = embedder.encode(
        [row.text for row in rows],
        [list(row.images) or None for row in rows],
        [list(row.prompts) or None for row in rows],
        truncate_dim=dim if dim < embedder.embed_dim else None,
    )
    return [
        Query(request.model_dump(exclude_defaults=True), row.region, row, vector)
        for (request, row), vector in zip(pairs, np.asarray(vectors), strict=True)
    ]


def decode_requests(
    requests: Sequence[EmbeddingRequest], access: ImageAccess | None
) -> Iterator[tuple[EmbeddingRequest, RequestRow]]:
    """Yield the rows that requests ask for, each with its request. Raises VirtueError, which names the query."""
    from virtue_pl.preprocessing.requests import ImageAccess, decode_request

    for number, request in enumerate(requests):
        try:
            yield from ((request, row) for row in decode_request(request, access or ImageAccess()))
        except VirtueError as error:
            raise VirtueError(str(error) if len(requests) == 1 else f"query {number}: {error}") from error
