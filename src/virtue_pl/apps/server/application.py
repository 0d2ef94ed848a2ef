"""The application: routes in OpenAI's, vLLM's and Cohere's forms over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from virtue_pl import __version__
from virtue_pl.apps.server.bodies import CohereBody, EmbeddingsBody, MasksBody
from virtue_pl.apps.server.errors import UnknownModel, add_error_replies, error_reply
from virtue_pl.apps.server.gate import Gate
from virtue_pl.apps.server.replies import reply_cohere, reply_masks, reply_openai
from virtue_pl.apps.server.service import Service
from virtue_pl.types import VirtueError
from virtue_pl.types.prompt_values import describe

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        401: "No key, or a wrong one",
        404: "Another model",
        413: "The body is too large",
        422: "A value or a key that is not allowed; the line names it",
        429: "The queue is full; see Retry-After",
        503: "The server starts or stops; see Retry-After",
    }.items()
}


def create_app(
    service: Service, routers: Sequence[APIRouter] = (), on_start: Callable[[], None] | None = None
) -> FastAPI:
    """Return the application of a service.

    Args:
        service: whose requests they are.
        routers: further routes, such as those of a search; their errors are answered as all others.
        on_start: called once the server runs.
    """

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        if on_start is not None:
            on_start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="virtue_pl",
        version=__version__,
        lifespan=live,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    for router in (embedding_routes(service), state_routes(service), *routers):
        app.include_router(router)
    add_error_replies(app, service.options.limits.retry_seconds)
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(Gate, service=service, paths=paths)  # type: ignore[arg-type]
    return app


def embedding_routes(service: Service) -> APIRouter:
    """Return the routes that embed and segment."""
    router = APIRouter(responses=ERRORS)

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsBody) -> Response:
        """Embed texts, images and regions, in OpenAI's, vLLM's or Infinity's form."""
        check_model(service, body.model)
        service.check_ready()
        check_dim(service, "dimensions", body.dimensions)
        requests = body.requests()
        async with service.admit(requests):
            rows, tokens = await service.run("embed", requests)
            form, dim = body.encoding_format, body.dimensions
            return await service.build(reply_openai, rows, requests, tokens, service.options.name, form, dim)

    @router.post("/v2/embed")
    async def embed(body: CohereBody) -> Response:
        """Embed texts, images and regions, in Cohere's form."""
        check_model(service, body.model)
        service.check_ready()
        check_dim(service, "output_dimension", body.output_dimension)
        kinds = body.embedding_types or ["float"]
        if calibrated := {"int8", "uint8"}.intersection(kinds):
            raise VirtueError(
                f"embedding_types: found {min(calibrated)!r}, whose steps need other embeddings to be drawn from,"
                " expected float, base64, binary or ubinary"
            )
        requests = body.requests(service.embedder.instructions)
        async with service.admit(requests):
            rows, tokens = await service.run("embed", requests)
            return await service.build(reply_cohere, rows, requests, tokens, kinds, body.output_dimension)

    @router.post("/v1/masks")
    async def masks(body: MasksBody) -> Response:
        """Return what the segmentation model takes each region for, as COCO's run lengths at the image's size."""
        check_model(service, body.model)
        requests = body.requests()
        async with service.admit(requests):
            found, _ = await service.run("masks", requests)
            return await service.build(reply_masks, found, requests[0], service.options.name)

    return router


def state_routes(service: Service) -> APIRouter:
    """Return the routes that say how the server is."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process runs."""
        return {"status": "ok"}

    @router.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> Response:
        """Say whether requests are accepted."""
        if service.state == "ready":
            return JSONResponse({"status": "ready"})
        return error_reply(503, f"the server is {service.state}", {"Retry-After": "1"})

    @router.get("/metrics", responses={401: ERRORS[401]})
    async def metrics() -> Response:
        """Return the counters in Prometheus' form."""
        return Response(service.metrics.to_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> dict[str, Any]:
        """Name the model."""
        model = {"id": service.options.name, "object": "model", "created": 0, "owned_by": "virtue_pl"}
        return {"object": "list", "data": [model]}

    return router


def check_model(service: Service, name: str | None) -> None:
    """Raise UnknownModel for another name than that of the server's model; none is right, too."""
    if name is not None and name != service.options.name:
        raise UnknownModel(f"model: found {describe(name)}, expected {service.options.name!r}, the one that is here")


def check_dim(service: Service, key: str, dim: int | None) -> None:
    """Raise VirtueError, which names the key, for more dimensions than an embedding has."""
    if dim is not None and dim > service.embedder.embed_dim:
        raise VirtueError(f"{key}: found {dim:,}, expected from 1 to the embedding's {service.embedder.embed_dim:,}")
