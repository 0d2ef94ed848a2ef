"""Queries of a search: requests as the command line and JSON Lines give them, embedded by the model of an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.embedder import Embedder
    from virtue_pl.preprocessing.requests import ImageAccess, RequestRow
    from virtue_pl.search.index import VectorIndex
    from virtue_pl.types.requests import EmbeddingRequest

SHORT = 60
"""The most characters of a query's words in its name."""


@dataclass(frozen=True, eq=False)
class Query:
    """One embedding to search with. request: what it was given as. row: its words, image and regions, decoded.

    Example:
        >>> query = embed_queries(embedder, index, [request])[0]  # doctest: +SKIP
        >>> query.name, query.vector.shape  # doctest: +SKIP
        ('street.jpg, box', (384,))
    """

    request: EmbeddingRequest
    row: RequestRow
    vector: np.ndarray

    @property
    def pointer(self) -> str:
        """The query's image, and the kinds of the prompts on it."""
        image = describe_image(self.request.images[0]) if self.request.images else ""
        kinds = [
            singular
            for plural, singular in PROMPT_KINDS.items()
            if any(len(getattr(prompt, plural)) for prompt in self.row.prompts)
        ]
        number = "" if self.row.region is None else f"region {self.row.region}"
        return ", ".join(filter(None, (image, number, " and ".join(kinds))))

    @property
    def name(self) -> str:
        """The query in a few words: its image, the kinds of its prompts, and its text."""
        text = self.row.text or ""
        short = text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
        return ", ".join(filter(None, (self.pointer, short)))


PROMPT_KINDS = {"boxes": "box", "points": "point", "masks": "mask"}
"""Kinds of a prompt by the names of their fields."""


def describe_image(image: Any) -> str:
    """Return the name of a request's image: of a path its last part."""
    from virtue_pl.preprocessing.requests import is_data_uri

    return Path(image).name if isinstance(image, str | Path) and not is_data_uri(str(image)) else "image"


def read_requests(lines: TextIO, name: str) -> list[EmbeddingRequest]:
    """Return the requests of JSON Lines, one a line. Raises VirtueError, which names the line, for anything else."""
    from virtue_pl.types.requests import EmbeddingRequest, read_request

    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise VirtueError(f'found {line.strip()[:40]}, expected a request, as {{"text": "a cup"}}')
            found.append(read_request(EmbeddingRequest, value))
        except ValueError as error:
            raise VirtueError(f"{name}, line {number} is no JSON: {error}") from error
        except VirtueError as error:
            raise VirtueError(f"{name}, line {number}: {error}") from error
    if not found:
        raise VirtueError(f"{name}: there are no requests, expected one a line as JSON")
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
    from virtue_pl.preprocessing.images import to_image
    from virtue_pl.preprocessing.segmentations import encode_mask

    return encode_mask(to_image(path, "--mask").amax(dim=0).numpy() > 0)


def embed_queries(
    embedder: Embedder, index: VectorIndex, requests: Sequence[EmbeddingRequest], access: ImageAccess | None = None
) -> list[Query]:
    """Return a query for each embedding that the requests ask for, of the length of the index's vectors.

    Raises VirtueError where the embedder's model is not the index's, and, naming the query, for a wrong request.
    """
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
    return [Query(request, row, vector) for (request, row), vector in zip(pairs, np.asarray(vectors), strict=True)]


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
