"""A session on Ray: addresses that are none, the room for actors, and errors in one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from virtue_pl.cluster import ActorPool, RayOptions, ray_session, session
from virtue_pl.types import DataError, VirtueError


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """Provide the port of a server that gives the same answer to everyone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1024)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("cluster", "--ray-address is 'cluster', expected HOST:PORT as `ray start --head` prints it, auto or local"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT .* run the command on a machine of the cluster"),
        ("127.0.0.1:{free}", r"127\.0\.0\.1:\d+: nothing answers there \(Connection refused\), expected"),
        ("127.0.0.1:99999", "nothing answers there"),
        ("127.0.0.1:{other}", "what answers there is no Ray cluster"),
    ],
)
def test_an_address_that_is_none_is_one_line(address, said):
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port, pytest.raises(VirtueError, match=said) as caught:
        with ray_session(RayOptions(address=address.format(free=free_port(), other=port))):
            pass
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(session, "PACKAGES", ("ray", "lance_ray_of_tomorrow"))
    with pytest.raises(VirtueError, match=r"needs the package lance_ray_of_tomorrow, .*pip install 'virtue-pl\[ray\]'"):
        session.import_ray()


def test_the_room_for_actors():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.5}, {}]
    assert ActorPool.fit(nodes, RayOptions()) == (2, 1.0, 1.0)
    assert ActorPool.fit(nodes, RayOptions(gpus=0)) == (11, 1.0, 0.0)
    assert ActorPool.fit(nodes, RayOptions(gpus=0.5, cpus=3)) == (2, 3.0, 0.5)
    assert ActorPool.fit(nodes, RayOptions(actors=1)) == (1, 1.0, 1.0)
    with pytest.raises(VirtueError, match=r"room for an actor of 9 CPUs and 1 GPUs: there are 8 CPUs and 2 GPUs, 3\.5"):
        ActorPool.fit(nodes, RayOptions(cpus=9))


@pytest.mark.parametrize("options", [{"actors": 0}, {"cpus": 0.0}, {"gpus": -1.0}])
def test_numbers_that_no_actor_can_have_are_refused(options):
    (name,) = options
    with pytest.raises(VirtueError, match=f"--ray-{name}"):
        RayOptions(**options)


def test_a_workers_error_is_one_line_and_a_defect_is_none():
    from ray.exceptions import ActorDiedError, RayTaskError

    with pytest.raises(VirtueError, match=r"^a/0: damaged image$"), session.ray_errors():
        error = DataError("a/0", "damaged image")
        raise RayTaskError("encode", "a long\ntraceback", error).as_instanceof_cause()
    with pytest.raises(VirtueError, match=r"^Ray: The actor died"), session.ray_errors():
        raise ActorDiedError()
    with pytest.raises(TypeError), session.ray_errors():
        raise RayTaskError("encode", "a long\ntraceback", TypeError("a bug")).as_instanceof_cause()
