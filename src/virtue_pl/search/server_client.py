"""A client of a running server's index: queries go to it as JSON, and neither torch nor an HTTP library is imported."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from virtue_pl.search.hits import Hit
from virtue_pl.types import VirtueError

QUERY_NUMBER = re.compile(r"query\.(\d+)(?P<joint>[.:]) ?(?P<rest>.*)", re.DOTALL)
"""Pattern of a server's line about one of several queries."""


@dataclass(frozen=True)
class SearchReply:
    """Answers of a server.

    index: its name. model: what encoded its rows. answers: of each query the numbers of its request and of its region,
    None without one, and its hits. problems: sentences on what is wrong with the index.

    Example:
        >>> SearchReply("index", "mini").answers
        []
    """

    index: str
    model: str
    answers: Sequence[tuple[int, int | None, list[Hit]]] = field(default_factory=list)
    problems: Sequence[str] = ()


class SearchServer:
    """A running `virtue-pl serve` with an index.

    Args:
        url: the address, as http://127.0.0.1:8000.
        key: for a server that wants one.
        seconds: in which an answer must begin to come.

    Raises:
        VirtueError: what is no URL.

    Example:
        >>> server = SearchServer("http://127.0.0.1:8000")
        >>> server.search([{"text": "a red cup"}], top=3).answers[0][2][0].name  # doctest: +SKIP
        'kitchen.jpg#2'
    """

    def __init__(self, url: str, key: str | None = None, seconds: float = 120.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(self.url)
            self.host, self.port = parts.hostname or "", parts.port
        except ValueError as error:
            raise VirtueError(f"--server: found {url!r}, which is no URL ({error})") from error
        if parts.scheme not in ("http", "https") or not self.host or parts.username is not None or parts.query:
            raise VirtueError(f"--server: found {url!r}, expected http://HOST:PORT, as http://127.0.0.1:8000")
        self.secure, self.path = parts.scheme == "https", parts.path
        self.key = key
        self.seconds = seconds

    def search(
        self, requests: Sequence[Mapping[str, Any]], top: int = 10, where: str | None = None, exact: bool = False
    ) -> SearchReply:
        """Return the nearest rows of each query, best first.

        Args:
            requests: mappings with the keys of `EmbeddingRequest`; images that are paths are sent.
            top: the number of hits of each query.
            where: a condition of SQL on the columns, such as "quality > 0.8 AND year = 2026".
            exact: compare every row.

        Raises:
            VirtueError: an image that cannot be read, no such server, no key, or what the server refuses.
        """
        body: dict[str, Any] = {"query": [send_images(request) for request in requests], "k": top, "exact": exact}
        reply = self.post("/v1/search", body | ({} if where is None else {"filter": where}))
        try:
            rows = reply["data"]
            numbers = list(number_queries(requests))
            if len(numbers) != len(rows):
                raise ValueError(f"{len(rows)} answers for {len(numbers)} queries")
            answers = [
                (number, region, [read_hit(hit) for hit in row["hits"]])
                for (number, region), row in zip(numbers, rows, strict=True)
            ]
            return SearchReply(reply["index"], reply["encoded_by"], answers, reply.get("problems", ()))
        except (KeyError, TypeError, ValueError) as error:
            raise VirtueError(f"{self.url} gave an answer that cannot be read ({error}), expected hits") from error

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the server's reply to a body. Raises VirtueError for none, and for an error, whose line it has."""
        connect = HTTPSConnection if self.secure else HTTPConnection
        connection = connect(self.host, self.port, timeout=self.seconds)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request("POST", f"{self.path}{path}", json.dumps(body, default=str).encode(), headers)
            response = connection.getresponse()
            status, content = response.status, response.read()
        except TimeoutError as error:
            raise VirtueError(f"{self.url} did not answer in {self.seconds:g} seconds") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise VirtueError(
                f"{self.url}: no server answers ({reason}), expected `virtue-pl serve` with --index"
            ) from error
        finally:
            connection.close()
        try:
            reply = json.loads(content)
        except ValueError:
            reply = None
        if status == 200 and isinstance(reply, dict):
            return reply
        raise VirtueError(self.describe_refusal(status, reply))

    def describe_refusal(self, status: int, reply: Any) -> str:
        """Return what a reply with an error says, and what to do."""
        error = reply.get("error") if isinstance(reply, dict) else None
        text = str(error.get("message", "")) if isinstance(error, dict) else ""
        if status == 401:
            return f"{self.url}: {text or 'a key is wanted'}; set VIRTUE_API_KEY, or name its file with --api-key-file"
        if status == 404 and text in ("", "Not Found"):
            return f"{self.url} searches no index: start `virtue-pl serve` with --index"
        return text if status == 422 and text else f"{self.url} answers {status}{f': {text}' if text else ''}"


def send_images(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request whose images are data URIs in place of paths; URLs stay. Raises VirtueError for no file."""
    image = request.get("image")
    if image is None:
        return dict(request)
    found = [send_image(each) for each in image] if isinstance(image, list | tuple) else send_image(image)
    return {**request, "image": found}


def send_image(image: Any) -> Any:
    """Return the data URI of a path's file; anything else as it is."""
    if not isinstance(image, str | Path) or str(image).startswith("data:") or "://" in str(image):
        return image
    path = Path(image)
    if not path.is_file():
        raise VirtueError(f"there is no image {image}")
    try:
        return f"data:image;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except OSError as error:
        raise VirtueError(f"the image {image} cannot be read ({error.strerror})") from error


def number_queries(requests: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int | None]]:
    """Yield of each query that requests ask for the numbers of its request and of its region, None without one.

    Example:
        >>> list(number_queries([{"text": "a"}, {"regions": [{}, {}], "regions_as": "each"}]))
        [(0, None), (1, 0), (1, 1)]
    """
    for number, request in enumerate(requests):
        each = request.get("regions_as") == "each"
        yield from ((number, region) for region in (range(len(request.get("regions") or ())) if each else (None,)))


def read_hit(values: Mapping[str, Any]) -> Hit:
    """Return a hit of a reply."""
    known_names = {each.name for each in fields(Hit)}
    found = {name: value for name, value in values.items() if name in known_names}
    if found.get("box") is not None:
        found["box"] = tuple(found["box"])
    return Hit(**found)


def name_line(message: str, name: str, lines: Sequence[int]) -> str:
    """Return a server's line about one of several queries as one about a line of a file, any other as it is.

    name, lines: the file, and of each query the number of its line; without them only the query's number is left out.

    Example:
        >>> name_line("query.1.regions.0: found 3", "queries.jsonl", [1, 4])
        'queries.jsonl, line 4: regions.0: found 3'
        >>> name_line("query.0: a request is empty", "", ())
        'a request is empty'
    """
    match = QUERY_NUMBER.match(message)
    if match is None:
        return f"{name}, line {lines[0]}: {message}" if len(lines) == 1 else message
    return f"{name}, line {lines[int(match[1])]}: {match['rest']}" if lines else match["rest"]
