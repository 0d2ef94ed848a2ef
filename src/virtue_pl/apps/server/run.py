"""A running server: it answers while its model is loaded, and ends once all that it accepted is answered."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter

from virtue_pl.apps.server.application import create_app
from virtue_pl.apps.server.options import ServerOptions
from virtue_pl.apps.server.service import Service
from virtue_pl.types import VirtueError

KEEP_ALIVE = 30
"""Seconds that an idle connection is kept."""

STOPPING_SECONDS = 5.0
"""Seconds that a client has to read the rest of its reply once the server stops."""

READ_SECONDS = 0.1
"""Time in which connections that were let in before the server stops may still be read."""


class Server(uvicorn.Server):
    """A uvicorn server that accepts nothing more from the signal on.

    Example:
        >>> server = Server(uvicorn.Config("module:app"), Service(ServerOptions()))
        >>> server.service.state
        'starting'
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._idle: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept nothing more, and end when everything is answered."""
        self.service.refuse()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Close connections that send no request, once a second; returns whether to end."""
        if counter % 10 == 0:
            self.close_idle(KEEP_ALIVE)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else in, answer whom was let in and has not been read yet, and end when all is answered."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(READ_SECONDS)
        closing = asyncio.create_task(self.close_idle_repeatedly())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def close_idle_repeatedly(self) -> None:
        """Close connections whose clients neither send nor read, for as long as the server stops."""
        while True:
            self.close_idle(STOPPING_SECONDS)
            await asyncio.sleep(0.1)

    def close_idle(self, seconds: float) -> None:
        """Close each connection that has waited so long for a request, or for its client to read the last reply.

        uvicorn itself waits for ever for the first request of a connection, and for the rest of one's headers.
        """
        now, waiting = time.monotonic(), {}
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_complete or connection.transport.is_closing():
                before, since = self._idle.get(connection, (cycle, now))
                waiting[connection] = (cycle, since if before is cycle else now)
                if now - waiting[connection][1] > seconds:
                    connection.transport.abort()
        self._idle = waiting

    def stop(self) -> None:
        """End as a signal does."""
        self.service.refuse()
        self.should_exit = True


def make_server(
    start: Callable[[Service], None],
    options: ServerOptions,
    failures: list[BaseException],
    make_routers: Callable[[Service], Sequence[APIRouter]] = lambda service: (),
) -> Server:
    """Return a server that loads its model in a thread once it runs.

    Args:
        start: loads the model, and has the service start with it.
        options: see `ServerOptions`.
        failures: gets what `start` raises, whereupon the server ends.
        make_routers: returns further routes.
    """
    service = Service(options)

    def start_or_stop() -> None:
        try:
            start(service)
        except BaseException as error:
            failures.append(error)
            server.stop()

    thread = threading.Thread(target=start_or_stop, name="virtue-load", daemon=True)
    app = create_app(service, make_routers(service), thread.start)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        ws="none",
        h11_max_incomplete_event_size=1 << 16,
    )
    server = Server(config, service)
    return server


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises VirtueError where the address is taken or is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise VirtueError(f"{host} port {port}: {error.strerror}; give another --port or --host") from error
    return found


def run_server(server: Server, failures: Sequence[BaseException], listening: socket.socket) -> None:
    """Run a server until it is stopped by SIGTERM or Ctrl+C. Raises what the loading of its model raised."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])  # uvicorn raises the signal again once it has ended, which these take
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
    if failures:
        raise failures[0]
