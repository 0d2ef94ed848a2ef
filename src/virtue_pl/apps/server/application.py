"""The application: routes in OpenAI's, vLLM's and Cohere's forms over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from virtue_pl import __version__
from virtue_pl.apps.server.bodies import CohereBody, EmbeddingsBody, MasksBody
from virtue_pl.apps.server.errors import ERRORS, add_error_replies, check_model, error_reply
from virtue_pl.apps.server.gate import Gate
from virtue_pl.apps.server.replies import reply_cohere, reply_masks, reply_openai
from virtue_pl.apps.server.service import Service
from virtue_pl.embedder.vectors import CALIBRATED
from virtue_pl.types import VirtueError


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

    limits = service.options.limits

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsBody, client: Request) -> Response:
        """Embed texts, images and regions, in OpenAI's, vLLM's or Infinity's form."""
        check_model(service.options.name, body.model)
        service.check_ready()
        check_dim(service, "dimensions", body.dimensions)
        requests = body.requests(limits.request_rows)
        async with service.admit(requests, client.state.owner, body.entries) as admission:
            rows = await service.run("embed", admission)
            form, dim = body.encoding_format, body.dimensions
            return await service.build(reply_openai, rows, requests, service.options.name, form, dim)

    @router.post("/v2/embed")
    async def embed(body: CohereBody, client: Request) -> Response:
        """Embed texts, images and regions, in Cohere's form."""
        check_model(service.options.name, body.model)
        service.check_ready()
        check_dim(service, "output_dimension", body.output_dimension)
        kinds = body.embedding_types or ["float"]
        calibrated = set(CALIBRATED).intersection(kinds)
        if calibrated and service.calibration is None:
            raise VirtueError(
                f"embedding_types: found {min(calibrated)!r}, whose steps are drawn from other embeddings, which this"
                " server was not given (--calibration), expected float, base64, binary or ubinary"
            )
        requests = body.requests(service.embedder.instructions, limits.request_rows)
        async with service.admit(requests, client.state.owner, body.entries) as admission:
            rows = await service.run("embed", admission)
            dim = body.output_dimension
            return await service.build(reply_cohere, rows, requests, kinds, dim, service.calibration)

    @router.post("/v1/masks")
    async def masks(body: MasksBody, client: Request) -> Response:
        """Return what the segmentation model takes each region for, as COCO's run lengths at the image's size."""
        check_model(service.options.name, body.model)
        service.check_ready()
        requests = body.requests()
        async with service.admit(requests, client.state.owner, "regions") as admission:
            found = await service.run("masks", admission)
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


def check_dim(service: Service, key: str, dim: int | None) -> None:
    """Raise VirtueError, which names the key, for more dimensions than an embedding has."""
    if dim is not None and dim > service.embedder.embed_dim:
        raise VirtueError(f"{key}: found {dim:,}, expected from 1 to the embedding's {service.embedder.embed_dim:,}")
