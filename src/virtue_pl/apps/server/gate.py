"""The gate before all routes: the key, the limits of bytes and of requests, and the counters."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from virtue_pl.apps.server.errors import error_reply
from virtue_pl.apps.server.options import names_loopback
from virtue_pl.apps.server.service import Service

LOG = logging.getLogger("uvicorn.error")

CLIENT_GONE = 499
"""The status under which requests are counted whose client goes before its reply begins."""

STOPPING_SECONDS = 0.5
"""Seconds in which a part of a body must come once the server stops."""

OPEN_PATHS = ("/health", "/ready")
"""Paths that need no key, and are not counted."""


class Gate:
    """An ASGI application before another, which refuses what may not come in.

    Args:
        app: the application behind it.
        service: whose options and counters these are.
        paths: of the routes, by which requests are counted.

    Example:
        >>> gate = Gate(app, service, frozenset({"/v1/embeddings"}))  # doctest: +SKIP
        >>> gate.requests_in_flight  # doctest: +SKIP
        0
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self.app = app
        self.service = service
        self.paths = paths
        self.requests_in_flight = 0
        self.bytes_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status: int | None = None
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(self.service.options.limits.client_seconds):
                await send(message)

        try:
            owner, refusal = self.refuse(headers)
            scope.setdefault("state", {})["owner"] = owner
            if refusal is not None:
                await refusal(scope, receive, note)
            else:
                await self.pass_on(scope, receive, note)
        except TimeoutError:
            LOG.warning("a client of %s does not read its reply", scope["path"])
        except Exception:
            LOG.exception("a request to %s failed", scope["path"])
            if status is None:
                await error_reply(500, "the server failed; its log says more")(scope, receive, note)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.service.metrics.observe_request(path, status or CLIENT_GONE, time.monotonic() - started)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting it and the bytes of its body as long as it is here."""
        limits, received, objects, complete = self.service.options.limits, 0, 0, asyncio.Event()
        deadline = time.monotonic() + limits.client_seconds

        async def count() -> Message:
            nonlocal received, objects
            if complete.is_set():  # what comes then is that the client has gone
                return await receive()
            message = await self.receive_part(receive, deadline)
            if not message.get("more_body", False):
                complete.set()
            part = message.get("body", b"")
            size, objects = len(part), objects + part.count(b"{") + part.count(b"[")
            received, self.bytes_in_flight = received + size, self.bytes_in_flight + size
            if received > limits.body_bytes:
                raise HTTPException(413, self.too_large())
            if objects > limits.body_objects:
                raise HTTPException(413, f"the body has more than {limits.body_objects:,} lists and objects")
            if self.bytes_in_flight > limits.bytes_in_flight:
                retry = {"Retry-After": str(limits.retry_seconds)}
                raise HTTPException(429, "too many bytes are being read: try again", retry)
            return message

        self.requests_in_flight += 1
        try:
            await self.answer(scope, count, send, complete)
        finally:
            self.requests_in_flight -= 1
            self.bytes_in_flight -= received

    async def answer(self, scope: Scope, receive: Receive, send: Send, complete: asyncio.Event) -> None:
        """Have the application answer; where the client goes before the reply begins, nothing more is computed for it.

        complete: set once the whole body has come, behind which only the client's going is received.
        """
        began = False

        async def note(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        async def wait_until_gone() -> None:
            await complete.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        answering = asyncio.ensure_future(self.app(scope, receive, note))
        gone = asyncio.ensure_future(wait_until_gone())
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not began:
                answering.cancel()
            await asyncio.wait((answering,))
        finally:
            gone.cancel()
            answering.cancel()
        if not answering.cancelled():
            answering.result()

    async def receive_part(self, receive: Receive, deadline: float) -> Message:
        """Return the next part of a body.

        Raises HTTPException where it does not come until the deadline, or soon after the server began to stop.
        """
        while (now := time.monotonic()) < deadline:
            try:
                async with asyncio.timeout(min(deadline - now, STOPPING_SECONDS)):
                    return await receive()
            except TimeoutError:
                if self.service.state == "stopping":
                    raise HTTPException(503, "the server stops, and the body has not come") from None
        raise HTTPException(408, f"the body did not come in {self.service.options.limits.client_seconds:g} seconds")

    def refuse(self, headers: dict[str, bytes]) -> tuple[int, Any]:
        """Return the number of a request's key, and the reply to one that may not come in; None for one that may."""
        options, owner = self.service.options, 0
        if options.keys:
            scheme, _, key = headers.get("authorization", b"").partition(b" ")
            found = options.find_key(key.strip()) if scheme.lower() == b"bearer" else None
            if found is None:
                problem = "is missing" if not key else "is not one of this server's"
                message = f"the key {problem}, expected `authorization: Bearer KEY`"
                return owner, error_reply(401, message, {"WWW-Authenticate": "Bearer"})
            owner = found
        return owner, self.refuse_load(headers)

    def refuse_load(self, headers: dict[str, bytes]) -> Any:
        """Return the reply to a request of another host, or without room; None for one that may come in."""
        options, limits = self.service.options, self.service.options.limits
        if not options.keys and not names_loopback(headers.get("host", b"").decode("latin-1"), (options.host,)):
            return error_reply(403, "the host of the request is not this machine: give the server a key for others")
        length = headers.get("content-length", b"0")
        if length.isdigit() and int(length[:20]) > limits.body_bytes:
            return error_reply(413, self.too_large())
        if self.requests_in_flight >= limits.requests:
            message = f"{self.requests_in_flight} requests are being answered: try again"
            return error_reply(429, message, {"Retry-After": str(limits.retry_seconds)})
        return None

    def too_large(self) -> str:
        """Return the line of a body that is too large."""
        return f"the body is too large, expected at most {self.service.options.limits.body_bytes:,} bytes"
