"""`virtue-pl serve`: answer over HTTP with embeddings, masks and searches, as OpenAI and Cohere do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from virtue_pl.cli import dataclass_options
from virtue_pl.cli.arguments import add_max_pixels, positive_number
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.option_groups import add_storage_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.evaluation.settings import LoadingOptions
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from virtue_pl.apps.server.index_search import SearchIndex
    from virtue_pl.apps.server.options import ServerOptions
    from virtue_pl.apps.server.run import Server
    from virtue_pl.apps.server.service import Service

GROUP = "models"
LIMITS = {
    "body-bytes": (32 << 20, "the largest body"),
    "bytes-in-flight": (512 << 20, "all bodies that are being answered, together"),
    "body-objects": (100_000, "lists and objects of one body"),
    "pixels-in-flight": (400_000_000, "all images that are being answered, together"),
    "requests": (256, "requests that are answered at a time"),
    "queued-rows": (2048, "embeddings that are accepted and not answered yet; beyond them 429"),
    "request-rows": (512, "embeddings of one request"),
    "characters": (100_000, "characters of one text"),
    "images": (32, "images of one embedding"),
    "regions": (256, "regions of one image"),
    "hits": (10_000, "hits of one search, of all its queries"),
    "batch-tokens": (16_384, "roughly the tokens of a batch"),
    "batch-rows": (16, "rows of a batch"),
    "client-seconds": (60, "seconds in which a client sends a body, or reads a part of a reply"),
}
"""Options that are limits, with their defaults, those of `apps.server.options`, which the parser does not import."""


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or Ctrl+C, and answer what was accepted; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.model is None and arguments.index is None:
        parser.error("there is no model, expected --model, or --index, whose model is taken")
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        try:
            import_module(name)
        except ImportError as error:
            raise VirtueError(f"serve needs {error.name}: pip install 'virtue_pl[serve]'") from error

    with LoadingLine("libraries"):
        from virtue_pl.apps.server.run import bind, run_server

    failures: list[BaseException] = []
    options = read_options(arguments)
    index = open_index(arguments)
    listening = bind(options.host, options.port)
    run_server(build_server(arguments, options, index, listening, failures), failures, listening)
    print("stopped: all accepted requests are answered", file=sys.stderr)
    return 0


def build_server(
    arguments: argparse.Namespace,
    options: ServerOptions,
    index: SearchIndex | None,
    listening: socket,
    failures: list[BaseException],
) -> Server:
    """Return the server, which loads its model once it runs, and says when it is ready.

    failures: gets what loading raises, whereupon the server ends.
    """
    from virtue_pl.apps.server.calibration import Calibration
    from virtue_pl.apps.server.run import make_server
    from virtue_pl.embedder import Embedder

    model = arguments.model if index is None else arguments.model or index.index.facts.model
    loaded: dict[str, Any] = vars(dataclass_options.read_options(LoadingOptions, arguments))
    address = f"http://{options.host}:{listening.getsockname()[1]}"

    def start(service: Service) -> None:
        sizes = {"batch_size": arguments.batch_rows, "cached_images": arguments.cached_images}
        try:
            embedder = Embedder.from_pretrained(
                model, device=arguments.device, max_pixels=arguments.max_pixels, **sizes, **loaded
            )
        except VirtueError as error:
            if arguments.model is not None:
                raise
            raise VirtueError(
                f"{error}; {arguments.index} was encoded by that model: say where it is with --model"
            ) from error
        if index is not None:
            index.check(embedder)
        calibration = None if arguments.calibration is None else Calibration.read(arguments.calibration, embedder)
        service.start(embedder, calibration)
        searches = "" if index is None else f", searches {index.uri} ({len(index.index):,} rows)"
        print(f"ready on {address}: {options.name}, {embedder.embed_dim} dimensions{searches}", file=sys.stderr)

    print(f"loading {model}; {address}/ready says when it is done", file=sys.stderr)
    return make_server(start, options, failures, lambda service: make_routers(service, index))


def open_index(arguments: argparse.Namespace) -> SearchIndex | None:
    """Return the index of `--index`, saying what is wrong with it. Raises VirtueError where it cannot be searched."""
    if arguments.index is None:
        return None
    from virtue_pl.apps.server.index_search import SearchIndex

    index = SearchIndex(arguments.index, arguments.storage_options)
    for problem in index.problems:
        print(f"virtue-pl: {problem}", file=sys.stderr)
    return index


def make_routers(service: Service, index: SearchIndex | None) -> Sequence[APIRouter]:
    """Return the routes of an index, where there is one."""
    if index is None:
        return ()
    from virtue_pl.apps.server.index_search import search_routes

    return (search_routes(service, index),)


def read_options(arguments: argparse.Namespace) -> ServerOptions:
    """Return the options of the server. Raises VirtueError for a host that others reach without a key."""
    from virtue_pl.apps.server.options import Limits, ServerOptions
    from virtue_pl.cli.keys import read_keys

    given = {field.name: getattr(arguments, field.name) for field in fields(Limits) if hasattr(arguments, field.name)}
    limits = Limits(**given, pixels=arguments.max_pixels)
    return ServerOptions(
        host=arguments.host,
        port=arguments.port,
        name=arguments.name,
        keys=read_keys(arguments.api_key_file),
        image_hosts=tuple(arguments.allow_host),
        decode_threads=arguments.decode_threads,
        recent_images=arguments.cached_images,
        limits=limits,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl serve",
        description=(
            "Answers on /v1/embeddings (OpenAI's, vLLM's and Infinity's forms), /v2/embed (Cohere's), /v1/masks,"
            " /v1/search of an index, /health, /ready and /metrics. Other machines need a key, from --api-key-file or"
            " VIRTUE_API_KEY."
        ),
    )
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="an exported folder, a release, a hub name or a run's .ckpt; default: that of --index",
    )
    parser.add_argument("--index", metavar="FOLDER", help="what `virtue-pl index` has written, searched on /v1/search")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s; 0 takes a free one")
    parser.add_argument("--name", default="virtue", help="by which clients name the model (default %(default)s)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one a line, beside VIRTUE_API_KEY")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="read images of URLs on this host, and no other",
    )
    parser.add_argument(
        "--calibration",
        metavar="ROWS",
        help="encoded rows, whose ranges integer embeddings (int8, uint8) are calibrated by; they are refused without",
    )
    parser.add_argument("--device", default="auto", help="default: a GPU where there is one")
    parser.add_argument(
        "--cached-images",
        type=positive_number,
        default=32,
        help="images whose features stay, and which are found again by their uuid (default %(default)s)",
    )
    parser.add_argument(
        "--decode-threads", type=positive_number, default=2, help="that decode images (default %(default)s)"
    )
    add_max_pixels(parser)
    for name, (default, text) in LIMITS.items():
        parser.add_argument(
            f"--{name}", type=positive_number, default=default, metavar="N", help=f"{text} (default {default:,})"
        )
    dataclass_options.add_options(parser, LoadingOptions)
    add_storage_options(parser)
    return parser
