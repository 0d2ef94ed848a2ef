"""The model behind the routes: requests are admitted, decoded in threads, batched, and computed by one thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

from virtue_pl.apps.server.batching import BatchQueue, Job, QueueClosed, Task
from virtue_pl.apps.server.bodies import count_rows, name_error
from virtue_pl.apps.server.calibration import Calibration
from virtue_pl.apps.server.metrics import Metrics
from virtue_pl.apps.server.options import ServerOptions
from virtue_pl.apps.server.recent_images import PixelBudget, RecentImages
from virtue_pl.apps.server.remote_images import RemoteImages
from virtue_pl.apps.server.replies import EmbeddedRow, PredictedMask, reply_openai
from virtue_pl.embedder import Embedder
from virtue_pl.embedder.row_batches import estimate_length
from virtue_pl.embedder.row_details import RowDetails
from virtue_pl.embedder.row_keys import row_key
from virtue_pl.metrics.mask_iou import expected_iou
from virtue_pl.preprocessing.image_sources import KeyedPixels
from virtue_pl.preprocessing.requests import ImageAccess, RequestRow, decode_inputs, decode_request, upright_size
from virtue_pl.types import EmbeddingInput, VirtueError
from virtue_pl.types.prompt_values import size_of
from virtue_pl.types.requests import EmbeddingRequest

INLINE_ROWS = 4
"""Rows of a reply that is made at once, since handing it to a thread would take longer."""


TOKENS_PER_REGION = 16
"""Rough number of a region's segment tokens, by which batches are bounded; nothing else depends on it."""


@dataclass
class Admission:
    """Requests for which there is room.

    rows: the embeddings that they ask for. owner: the number of the client's key. name: the key of the body that they
    stand under. pixels: those of their images.

    Example:
        >>> Admission([EmbeddingRequest(text="a cat")], rows=1).pixels
        0
    """

    requests: Sequence[EmbeddingRequest]
    rows: int
    owner: int = 0
    name: str = "input"
    pixels: int = 0


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
        self.recent = RecentImages(options.recent_images, options.limits.pixels_in_flight // 4)
        self.pixels = PixelBudget(options.limits.pixels_in_flight)
        self.decoders = ThreadPoolExecutor(options.decode_threads, "virtue-decode")
        self.metrics = Metrics(self.count_queued, self.count_cached)
        self.queue: BatchQueue | None = None
        self.model: Embedder | None = None
        self.calibration: Calibration | None = None
        if embedder is not None:
            self.start(embedder)

    @property
    def embedder(self) -> Embedder:
        """The model. Raises QueueClosed before there is one."""
        if self.model is None:
            raise QueueClosed("the model is being loaded")
        return self.model

    def start(self, embedder: Embedder, calibration: Calibration | None = None) -> None:
        """Begin to accept requests for a model. calibration: of integer embeddings, which are refused without."""
        self.model, self.calibration = embedder, calibration
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

    def check_size(self, requests: Sequence[EmbeddingRequest], name: str) -> int:
        """Return the rows of requests. Raises VirtueError, which names `name`, for more than the limits allow."""
        limits = self.options.limits
        if (rows := count_rows(requests)) > limits.request_rows:
            raise VirtueError(f"{name}: asks for {rows:,} embeddings, expected at most {limits.request_rows:,}")
        regions = max((len(request.regions) for request in requests), default=0)
        if regions > limits.regions:
            raise VirtueError(f"regions: found {regions:,} of one image, expected at most {limits.regions:,}")
        longest = max((len(request.text) + len(request.instruction) for request in requests), default=0)
        if longest > limits.characters:
            raise VirtueError(f"{name}: found a text of {longest:,} characters, expected at most {limits.characters:,}")
        images = max((len(request.images) for request in requests), default=0)
        if images > limits.images:
            raise VirtueError(f"{name}: found {images:,} images of one embedding, expected at most {limits.images:,}")
        return rows

    @asynccontextmanager
    async def admit(
        self, requests: Sequence[EmbeddingRequest], owner: int = 0, name: str = "input"
    ) -> AsyncIterator[Admission]:
        """Hold room in the queue for requests. Raises QueueFull, QueueClosed, or VirtueError for too large ones.

        owner: the number of the client's key. name: the key of the body that the requests stand under, for errors.
        """
        self.check_ready()
        assert self.queue is not None
        rows = self.check_size(requests, name)
        self.queue.reserve(rows)
        self.metrics.admitted.inc()
        admission = Admission(requests, rows, owner, name)
        try:
            yield admission
        finally:
            self.queue.release(rows)
            self.pixels.release(admission.pixels)

    async def run(self, task: Task, admission: Admission) -> list[Any]:
        """Return an `EmbeddedRow`, or for masks a `PredictedMask`, for each row of admitted requests."""
        assert self.queue is not None
        decoding = asyncio.get_running_loop().run_in_executor(self.decoders, self.decode, admission)
        try:
            items, tokens = await asyncio.shield(decoding)
        except asyncio.CancelledError:
            await asyncio.wait([decoding])  # so that what it takes room for is given back
            raise
        return list(await asyncio.wrap_future(self.queue.submit(Job(task, items, tokens))))

    async def build(self, reply: Callable[..., dict[str, Any]], rows: Sequence[Any], *arguments: Any) -> Response:
        """Return the reply that a function makes of rows; long ones are made in a thread, so that others go on."""

        def render() -> Response:
            return JSONResponse(reply(rows, *arguments))

        if len(rows) <= INLINE_ROWS and reply is reply_openai:
            return render()
        return await asyncio.get_running_loop().run_in_executor(self.decoders, render)

    def decode(self, admission: Admission) -> tuple[list[EmbeddingInput], float]:
        """Return admitted requests as inputs with their pixels, and roughly their number of tokens.

        Images that were sent under a uuid are kept, those that are named by a uuid alone are found again.
        """
        items, requests = [], admission.requests
        take = partial(self.take_pixels, admission)
        access = replace(self.access, recall=partial(self.recent.get, admission.owner), take_mask=take)
        for number, request in enumerate(requests):
            name = f"{admission.name}.{number}" if len(requests) > 1 else ""
            rows = name_error(name, decode_request, request, access)
            take(name_error(name, self.count_pixels, rows))
            found = name_error(name, decode_inputs, rows, access.max_pixels)
            for item in found:
                name_error(name or admission.name, self.embedder.collator.check_input, item)
            items += found
            if request.uuid is not None and request.images:
                image = KeyedPixels(found[0].image_keys[0], found[0].images[0])
                self.recent.put(admission.owner, request.uuid, image)
        return items, sum(self.estimate_tokens(item) for item in items)

    def count_pixels(self, rows: Sequence[RequestRow]) -> int:
        """Return the pixels of the images of rows, of which the headers are read; those that are kept count nothing."""
        images = {id(image): image for row in rows for image in row.images if not isinstance(image, KeyedPixels)}
        sizes = [upright_size(image, "image", self.access.max_pixels) for image in images.values()]
        return sum(height * width for height, width in sizes)

    def take_pixels(self, admission: Admission, pixels: int) -> None:
        """Take room for images or masks of a request. Raises QueueFull where there is none."""
        self.pixels.take(pixels, admission.pixels)
        admission.pixels += pixels

    def estimate_tokens(self, item: EmbeddingInput) -> float:
        """Return roughly the number of tokens of a row, those of its regions included."""
        prompts = sum(not prompt.is_empty for prompt in item.prompts)
        return estimate_length(item, self.embedder.collator.resized_size) + TOKENS_PER_REGION * prompts

    def compute(self, task: Task, items: Sequence[EmbeddingInput]) -> Sequence[Any]:
        """Return an embedding, or a mask, for each row; called by the one thread that owns the model."""
        task_of: Callable[[Sequence[EmbeddingInput]], list[Any]] = self.embed if task == "embed" else self.predict_masks
        return [row for chunk in split_by_prompts(items, self.options.limits.batch_rows) for row in task_of(chunk)]

    def embed(self, items: Sequence[EmbeddingInput]) -> list[EmbeddedRow]:
        """Return the embedding and the details of each row."""
        details: dict[Any, RowDetails] = {}
        vectors = self.embedder.embed(items, details=details)
        self.metrics.tokens.inc(sum(each.tokens for each in details.values()))
        return [
            EmbeddedRow(vector, details[row_key(item)], size_of(item.images[0]) if item.images else None)
            for vector, item in zip(vectors, items, strict=True)
        ]

    def predict_masks(self, items: Sequence[EmbeddingInput]) -> list[PredictedMask]:
        """Return the mask of each row's region. Raises VirtueError for a model that predicts none."""
        found: list[PredictedMask] = []
        for start in range(0, len(items), self.options.limits.batch_rows):
            chunk = items[start : start + self.options.limits.batch_rows]
            logits = self.embedder.predict_mask_logits(chunk)
            if logits is None:
                raise VirtueError("the model's segmentation network predicts no masks")
            ious = expected_iou(logits > 0, logits.sigmoid()).tolist()
            found += [
                PredictedMask(mask, size_of(item.images[0]), iou)
                for mask, item, iou in zip(logits > 0, chunk, ious, strict=True)
            ]
        return found


def split_by_prompts(items: Sequence[EmbeddingInput], most: int) -> Iterator[Sequence[EmbeddingInput]]:
    """Yield rows in order: all at once where none has several regions, else those of at most so many regions together.

    The segmentation model is given the regions of a whole batch at once; a row with more of them comes alone.
    """
    if all(len(item.prompts) <= 1 for item in items):
        yield items
        return
    chunk: list[EmbeddingInput] = []
    for item in items:
        if chunk and sum(len(each.prompts) for each in chunk) + len(item.prompts) > most:
            yield chunk
            chunk = []
        chunk.append(item)
    yield chunk
