"""The model behind the routes: requests are admitted, decoded in threads, batched, and computed by one thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np
from starlette.responses import JSONResponse, Response
from torch import Tensor

from virtue_pl.apps.server.batching import BatchQueue, Job, QueueClosed, Task
from virtue_pl.apps.server.bodies import count_rows
from virtue_pl.apps.server.metrics import Metrics
from virtue_pl.apps.server.options import ServerOptions
from virtue_pl.apps.server.remote_images import RemoteImages
from virtue_pl.apps.server.replies import reply_openai
from virtue_pl.embedder import Embedder
from virtue_pl.preprocessing.embedding_rows import check_prompt_sizes
from virtue_pl.preprocessing.requests import ImageAccess, decode_inputs, decode_request
from virtue_pl.types import EmbeddingInput, VirtueError
from virtue_pl.types.requests import EmbeddingRequest

INLINE_ROWS = 4
"""Rows of a reply that is made at once, since handing it to a thread would take longer."""


class Service:
    """An embedder that many requests share.

    state: "starting" until there is a model, "ready", and "stopping" once nothing more is accepted.

    Args:
        options: limits, names and hosts.
        embedder: may come later, by `start`.

    Example:
        >>> service = Service(ServerOptions())
        >>> service.state
        'starting'
    """

    def __init__(self, options: ServerOptions, embedder: Embedder | None = None) -> None:
        self.options = options
        self.state: Literal["starting", "ready", "stopping"] = "starting"
        remote = RemoteImages(options.image_hosts, options.limits.body_bytes)
        self.access = ImageAccess(
            paths=False,
            fetch=remote.fetch if options.image_hosts else None,
            max_pixels=options.limits.pixels,
            max_bytes=options.limits.body_bytes,
        )
        self.decoders = ThreadPoolExecutor(options.decode_threads, "virtue-decode")
        self.metrics = Metrics(self.count_queued, self.count_cached)
        self.queue: BatchQueue | None = None
        self.model: Embedder | None = None
        if embedder is not None:
            self.start(embedder)

    @property
    def embedder(self) -> Embedder:
        """The model. Raises QueueClosed before there is one."""
        if self.model is None:
            raise QueueClosed("the model is being loaded")
        return self.model

    def start(self, embedder: Embedder) -> None:
        """Begin to accept requests for a model."""
        self.model = embedder
        self.queue = BatchQueue(self.compute, self.options.limits, self.metrics.observe_batch)
        if self.state == "starting":
            self.state = "ready"

    def refuse(self) -> None:
        """Accept nothing more; what was accepted is answered."""
        self.state = "stopping"

    def stop(self) -> None:
        """Answer everything that was accepted, and end all threads."""
        self.refuse()
        if self.queue is not None:
            self.queue.close()
        self.decoders.shutdown()

    def count_queued(self) -> float:
        """Return the rows that are accepted and not answered yet."""
        return 0 if self.queue is None else self.queue.reserved_rows

    def count_cached(self) -> float:
        """Return the images whose features are cached."""
        return 0 if self.model is None else len(self.model.feature_cache)

    def check_ready(self) -> None:
        """Raise QueueClosed before there is a model, and once the server stops."""
        if self.state != "ready":
            raise QueueClosed("the model is being loaded" if self.state == "starting" else "the server stops")

    def check_size(self, requests: Sequence[EmbeddingRequest]) -> int:
        """Return the rows of requests. Raises VirtueError for more rows or regions than the limits allow."""
        limits = self.options.limits
        if (rows := count_rows(requests)) > limits.request_rows:
            raise VirtueError(f"the request asks for {rows:,} embeddings, expected at most {limits.request_rows:,}")
        regions = max((len(request.regions) for request in requests), default=0)
        if regions > limits.regions:
            raise VirtueError(f"regions: found {regions:,} of one image, expected at most {limits.regions:,}")
        return rows

    @asynccontextmanager
    async def admit(self, requests: Sequence[EmbeddingRequest]) -> AsyncIterator[None]:
        """Hold room in the queue for requests. Raises QueueFull, QueueClosed, or VirtueError for too large ones."""
        self.check_ready()
        assert self.queue is not None
        rows = self.check_size(requests)
        self.queue.reserve(rows)
        try:
            yield
        finally:
            self.queue.release(rows)

    async def run(self, task: Task, requests: Sequence[EmbeddingRequest]) -> tuple[list[Any], int]:
        """Return one result for each row of admitted requests, and roughly their number of tokens."""
        assert self.queue is not None
        loop = asyncio.get_running_loop()
        items, tokens = await loop.run_in_executor(self.decoders, self.decode, requests)
        found = await asyncio.wrap_future(self.queue.submit(Job(task, items, tokens)))
        return list(found), max(1, round(tokens))

    async def build(self, reply: Callable[..., dict[str, Any]], rows: Sequence[Any], *arguments: Any) -> Response:
        """Return the reply that a function makes of rows; long ones are made in a thread, so that others go on."""

        def render() -> Response:
            return JSONResponse(reply(rows, *arguments))

        if len(rows) <= INLINE_ROWS and reply is reply_openai:
            return render()
        return await asyncio.get_running_loop().run_in_executor(self.decoders, render)

    def decode(self, requests: Sequence[EmbeddingRequest]) -> tuple[list[EmbeddingInput], float]:
        """Return requests as inputs with their pixels, and roughly their number of tokens."""
        items = []
        for number, request in enumerate(requests):
            try:
                items += decode_inputs(decode_request(request, self.access), self.access.max_pixels)
            except VirtueError as error:
                raise VirtueError(f"input {number}: {error}" if len(requests) > 1 else str(error)) from error
        check_prompt_sizes(items)
        self.embedder.check_rows(items)
        return items, sum(self.embedder.estimate_length(item) for item in items)

    def compute(self, task: Task, items: Sequence[EmbeddingInput]) -> Sequence[Any]:
        """Return an embedding, or a mask, for each row; called by the one thread that owns the model."""
        if task == "embed":
            return list(self.embedder.embed(items))
        found: list[np.ndarray] = []
        for start in range(0, len(items), self.options.limits.batch_rows):
            chunk = items[start : start + self.options.limits.batch_rows]
            masks = self.embedder.predict_masks(chunk)
            if masks is None:
                raise VirtueError("the model's segmentation network predicts no masks")
            found += [resize_mask(mask, item.images[0]) for mask, item in zip(masks, chunk, strict=True)]
        return found


def resize_mask(mask: Tensor, image: Tensor) -> np.ndarray:
    """Return a mask over the whole image, at the image's size."""
    from torch.nn.functional import interpolate

    found = interpolate(mask[None, None].float(), size=tuple(image.shape[1:]), mode="nearest-exact")[0, 0] > 0.5
    return np.asfortranarray(found.numpy().astype(np.uint8))
