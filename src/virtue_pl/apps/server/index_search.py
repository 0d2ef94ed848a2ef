"""Search over HTTP: the index that a server answers from, and its routes."""

from __future__ import annotations

import asyncio
import base64
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from virtue_pl.apps.server.batching import QueueClosed
from virtue_pl.apps.server.bodies import SearchBody
from virtue_pl.apps.server.errors import ERRORS, check_model
from virtue_pl.apps.server.replies import EmbeddedRow, count_usage, name_regions, stack
from virtue_pl.apps.server.service import Service
from virtue_pl.embedder import Embedder, convert_vectors
from virtue_pl.search import Hit, VectorIndex
from virtue_pl.types import VirtueError
from virtue_pl.types.requests import EmbeddingRequest


class SearchIndex:
    """An index that a server searches; a folder that was built again meanwhile is opened again.

    Args:
        uri: its folder, or a URI of object storage, which is opened once.
        storage_options: of object storage, as LanceDB takes them.

    Raises:
        VirtueError: there is no index, it was never finished, has lost its approximate index, or holds no rows.

    Example:
        >>> index = SearchIndex("runs/index")  # doctest: +SKIP
        >>> index.check(embedder)  # doctest: +SKIP
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.name = Path(uri.rstrip("/")).name
        self.storage_options = dict(storage_options or {})
        self._embedder: Embedder | None = None
        self._lock = threading.Lock()
        self._state = self.find_state()
        self.index = self.open()

    def open(self) -> VectorIndex:
        """Return the index as it is now. Raises VirtueError where it cannot be searched."""
        found = VectorIndex.open(self.uri, self.storage_options)
        if not len(found):
            raise VirtueError(f"{self.uri} is empty, expected an index with rows: build it again")
        self.problems = found.problems()
        if self._embedder is not None:
            found.check_query_model(self._embedder.fingerprint(), self._embedder.embed_dim, "the server's model")
        return found

    def check(self, embedder: Embedder) -> None:
        """Raise VirtueError where the rows were not encoded by a model; later, every index must have been by it."""
        self.index.check_query_model(embedder.fingerprint(), embedder.embed_dim, "the server's model")
        self._embedder = embedder

    def find_state(self) -> tuple[int, int] | None:
        """Return what changes where a local folder is replaced or written to; None for one that is gone, or remote."""
        table = Path(self.uri) / "rows.lance"
        try:
            return table.stat().st_ino, (table / "_versions").stat().st_mtime_ns
        except OSError:
            return None

    def current(self) -> VectorIndex:
        """Return the index, opened again where it has changed.

        Raises QueueClosed where it is gone or can no longer be searched.
        """
        with self._lock:
            state = self.find_state()
            if state != self._state:
                try:
                    self.index, self._state = self.open(), state
                except VirtueError as error:
                    raise QueueClosed(f"the index {self.name} has changed, and cannot be searched ({error})") from error
            return self.index

    def search(
        self, rows: Sequence[EmbeddedRow], k: int, condition: str | None, exact: bool
    ) -> tuple[VectorIndex, list[list[Hit]]]:
        """Return the index and the hits of each row. Raises VirtueError for a condition that cannot be read."""
        index = self.current()
        vectors = np.asarray(convert_vectors(stack(rows), index.facts.dim))
        try:
            return index, index.search(vectors, k, condition, exact)
        except VirtueError as error:
            text = str(error)
            raise VirtueError(f"filter{text.removeprefix('where')}" if text.startswith("where: ") else text) from error

    def describe(self) -> dict[str, Any]:
        """Return the facts of the index, for clients."""
        index = self.current()
        facts, settings = index.facts, index.settings
        own = [name for name in index.columns if name not in {field.name for field in fields(Hit)}]
        return {
            "object": "index",
            "id": self.name,
            "rows": len(index),
            "dim": facts.dim,
            "documents": facts.documents,
            "encoded_by": Path(facts.model).name,
            "kind": settings.kind,
            "recall": settings.recall,
            "columns": own,
            "problems": self.problems,
        }


def search_routes(service: Service, index: SearchIndex) -> APIRouter:
    """Return the routes that search an index."""
    router = APIRouter(responses=ERRORS)
    threads = ThreadPoolExecutor(2, "virtue-search")
    limits = service.options.limits

    @router.post("/v1/search")
    async def search(body: SearchBody, client: Request) -> Response:
        """Find the rows of the index that are nearest to texts, images or regions."""
        check_model(service.options.name, body.model)
        service.check_ready()
        requests = body.requests(limits.request_rows)
        async with service.admit(requests, client.state.owner, "query") as admission:
            if body.k * admission.rows > limits.hits:
                raise VirtueError(
                    f"k: found {body.k:,} hits for each of {admission.rows:,} queries, expected at most"
                    f" {limits.hits:,} together"
                )
            rows = await service.run("embed", admission)
            loop = asyncio.get_running_loop()
            opened, found = await loop.run_in_executor(threads, index.search, rows, body.k, body.filter, body.exact)
            facts = {"index": index.name, "encoded_by": Path(opened.facts.model).name, "problems": index.problems}
            return await service.build(reply_search, rows, requests, found, service.options.name, facts)

    @router.get("/v1/index")
    async def describe() -> dict[str, Any]:
        """Say what the index holds."""
        service.check_ready()
        return await asyncio.get_running_loop().run_in_executor(threads, index.describe)

    return router


def reply_search(
    rows: Sequence[EmbeddedRow],
    requests: Sequence[EmbeddingRequest],
    found: Sequence[Sequence[Hit]],
    model: str,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the hits of each row, best first; a row of a region has it beside them.

    facts: of the index, `problems` only where there are any.
    """
    data = [
        {"object": "search_result", "index": number, **region, "hits": [to_plain(hit) for hit in hits]}
        for number, (hits, region) in enumerate(zip(found, name_regions(requests, rows), strict=True))
    ]
    about = {name: value for name, value in facts.items() if value}
    return {"object": "list", "data": data, "model": model, **about, "usage": count_usage(rows)}


def to_plain(hit: Hit) -> dict[str, Any]:
    """Return a hit as JSON has it, without what is missing."""
    values = {field.name: getattr(hit, field.name) for field in fields(hit)}
    return {name: plain_value(value) for name, value in values.items() if value not in (None, {})}


def plain_value(value: Any) -> Any:
    """Return a value of a column as JSON has it: no number is null, a date a text, bytes are base64.

    Example:
        >>> plain_value({"score": float("nan"), "when": date(2026, 12, 1), "tags": ("a", b"b")})
        {'score': None, 'when': '2026-12-01', 'tags': ['a', 'Yg==']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)
