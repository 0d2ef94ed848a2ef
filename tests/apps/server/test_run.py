"""A server from its start to its end."""

from __future__ import annotations

import os
import signal
import threading

import httpx
import pytest

from virtue_pl.apps.server.options import ServerOptions
from virtue_pl.apps.server.run import bind, make_server, run_server
from virtue_pl.types import VirtueError


def test_a_taken_port_is_one_line():
    listening = bind("127.0.0.1", 0)
    try:
        with pytest.raises(VirtueError, match="give another --port or --host"):
            bind("127.0.0.1", listening.getsockname()[1])
    finally:
        listening.close()


def test_a_model_that_cannot_be_loaded_ends_the_server():
    failures = []

    def load():
        raise VirtueError("there is no model here")

    with pytest.raises(VirtueError, match="there is no model here"):
        run_server(
            make_server(lambda service: service.start(load()), ServerOptions(), failures),
            failures,
            bind("127.0.0.1", 0),
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_handlers_are_as_before(embedder, number):
    before = signal.getsignal(number)
    listening, failures, statuses = bind("127.0.0.1", 0), [], []
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/embeddings"

    def use(service):
        with httpx.Client(trust_env=False, timeout=30) as client:
            statuses.append(client.post(url, json={"input": "a"}).status_code)
        os.kill(os.getpid(), number)

    def start(service):
        service.start(embedder)
        threading.Thread(target=use, args=(service,)).start()

    server = make_server(start, ServerOptions(), failures)
    run_server(server, failures, listening)
    assert statuses == [200] and signal.getsignal(number) is before
