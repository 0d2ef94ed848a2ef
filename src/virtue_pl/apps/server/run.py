"""A running server: it answers while its model is loaded, and ends once all that it accepted is answered."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import APIRouter

from virtue_pl.apps.server.application import create_app
from virtue_pl.apps.server.options import ServerOptions
from virtue_pl.apps.server.service import Service
from virtue_pl.embedder import Embedder
from virtue_pl.types import VirtueError

KEEP_ALIVE = 30
"""Seconds that an idle connection is kept."""

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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept nothing more, and end when everything is answered."""
        self.service.refuse()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else in, answer whom was let in and has not been read yet, and end when all is answered."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(READ_SECONDS)
        await super().shutdown(sockets)

    def stop(self) -> None:
        """End as a signal does."""
        self.service.refuse()
        self.should_exit = True


def make_server(
    load: Callable[[], Embedder],
    options: ServerOptions,
    failures: list[BaseException],
    routers: Sequence[APIRouter] = (),
    announce: Callable[[Service], None] = lambda service: None,
) -> Server:
    """Return a server that loads its model in a thread once it runs.

    Args:
        load: returns the model.
        options: see `ServerOptions`.
        failures: gets what `load` raises, whereupon the server ends.
        routers: further routes.
        announce: called once requests are accepted.
    """
    service = Service(options)

    def start() -> None:
        try:
            service.start(load())
            announce(service)
        except BaseException as error:
            failures.append(error)
            server.stop()

    app = create_app(service, routers, threading.Thread(target=start, name="virtue-load", daemon=True).start)
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
