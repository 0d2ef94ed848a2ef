"""A session on Ray: connecting in silence, the room that actors have, and errors in one line."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from virtue_pl.cluster.options import PREFIX, RayOptions
from virtue_pl.types import VirtueError

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # of a Ray that is started here, as the next one
    "RAY_worker_niceness": "0",  # its actors are not served behind every other process, as any other command's
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what nodes have to say is in Ray's own files, not among the command's output
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Settings that Ray reads when it is imported; what a user has set stays."""
PACKAGES = ("ray", "lance", "lance_ray")
"""Modules of the extra `ray`. Lance is imported behind a connection: it warns of the processes that Ray starts."""
LOOPBACK = "127.0.0.1"
HTTP2_SETTINGS, HTTP2_HEADER = b"\x04", 9
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
"""Bytes that a connection of gRPC begins with; a server answers with a frame of this type."""
SECONDS_TO_ANSWER = 5.0
"""Seconds within which a cluster answers."""


@contextmanager
def ray_session(options: RayOptions = RayOptions()) -> Iterator[Any]:
    """Provide the package ray, connected within the block; a connection that is there already is used, and stays.

    Raises VirtueError, in one line, where Ray is not installed, or the cluster does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    connect(ray, options)
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Return the package ray, its console in silence. Raises VirtueError where it, or what goes with it, is missing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise VirtueError(
            f"--engine ray needs the package {missing[0]}, which is not installed: `pip install 'virtue-pl[ray]'`"
        )
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL)
    return ray


def connect(ray: Any, options: RayOptions) -> None:
    """Connect to the cluster of the options, or start one on this machine, which only it can reach."""
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        settings |= {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    elif address != "auto":
        check_address(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with silence():
            ray.init(address, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise VirtueError(f"--{PREFIX}address {address}: {first_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own


@contextmanager
def silence() -> Iterator[None]:
    """Drop what native code writes to stderr within the block: Ray's says that it was set to be silent."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def check_address(address: str) -> None:
    """Raise VirtueError for an address of another form, and where nothing answers there, or nothing that talks gRPC.

    Ray itself would try for minutes.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise VirtueError(
            f"--{PREFIX}address is {address!r}, expected HOST:PORT as `ray start --head` prints it, auto or local; run"
            " the command on a machine of the cluster"
        )
    try:
        with socket.create_connection((host, int(port)), SECONDS_TO_ANSWER) as connection:
            connection.sendall(HTTP2_GREETING)
            answer = connection.recv(HTTP2_HEADER)
    except (OSError, OverflowError) as error:
        raise VirtueError(
            f"--{PREFIX}address {address}: nothing answers there ({getattr(error, 'strerror', None) or error}),"
            " expected HOST:PORT as `ray start --head` prints it"
        ) from error
    if answer[3:4] != HTTP2_SETTINGS:
        raise VirtueError(
            f"--{PREFIX}address {address}: what answers there is no Ray cluster, expected HOST:PORT as"
            " `ray start --head` prints it"
        )


class ActorPool(NamedTuple):
    """Room of a cluster for actors: their number at most, and the CPUs and GPUs of each.

    Example:
        >>> ActorPool.fit([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0}], RayOptions())
        ActorPool(actors=2, cpus=1.0, gpus=1.0)
    """

    actors: int
    cpus: float
    gpus: float

    @classmethod
    def fit(cls, nodes: Sequence[Mapping[str, float]], options: RayOptions) -> ActorPool:
        """Return the room on nodes of these resources. Raises VirtueError where none of them has room for one actor."""
        gpus = options.gpus
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        wanted = {"CPU": options.cpus, "GPU": gpus}
        actors = [min(int(node.get(name, 0) / size) for name, size in wanted.items() if size) for node in nodes]
        if not sum(actors):
            has = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:5])
            raise VirtueError(
                f"no node of the cluster has room for an actor of {options.cpus:g} CPUs and {gpus:g} GPUs: there"
                f" {'is' if len(nodes) == 1 else 'are'} {has or 'no node'}: give less with --{PREFIX}cpus or"
                f" --{PREFIX}gpus"
            )
        return cls(min(options.actors or sum(actors), sum(actors)), options.cpus, gpus)

    @classmethod
    def of_cluster(cls, ray: Any, options: RayOptions) -> ActorPool:
        """Return the room on the nodes that are alive."""
        return cls.fit([node["Resources"] for node in ray.nodes() if node["Alive"]], options)


@contextmanager
def data_context(ray: Any, in_order: bool = False) -> Iterator[None]:
    """Set Ray Data up within the block: no bars of its own, and errors as they were raised.

    in_order: results come in the order of what they are of; or else as they are done, each row by itself.
    """
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    if in_order:
        context.execution_options.preserve_order = True
    else:
        context.target_max_block_size = 1
    with ray.data.DataContext.current(context):
        yield


@contextmanager
def ray_errors() -> Iterator[None]:
    """Raise an error of this package that a worker raised within the block, and Ray's own, as one line.

    Any other one is a defect, and comes as it is.
    """
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and type(found).__module__.partition(".")[0] != "virtue_pl":
            found = getattr(found, "cause", None) or found.__cause__
        if isinstance(found, VirtueError):
            raise VirtueError(str(found)) from error
        from ray.exceptions import RayError, RayTaskError

        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            raise VirtueError(f"Ray: {first_line(error)}") from error
        raise


def first_line(error: BaseException) -> str:
    """Return an error's text as one short line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
