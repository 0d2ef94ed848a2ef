"""`virtue-pl search FOLDER`: find images, regions and texts by a text, an image, or a click, box or mask in it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import add_max_pixels, positive_number
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.dataclass_options import add_options, read_options
from virtue_pl.cli.option_groups import add_storage_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.evaluation.settings import LoadingOptions
from virtue_pl.search.light_imports import lighten_lancedb
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from rich.table import Table

    from virtue_pl.embedder import Embedder
    from virtue_pl.search import Hit, VectorIndex
    from virtue_pl.search.queries import Query

GROUP = "models"

LONGEST = 200
"""The most characters of a value that JSON repeats of a request; those of images in data URIs are many more."""


def main(argv: list[str]) -> int:
    """Search, and print the hits; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    check_usage(parser, arguments)
    lines = read_queries(arguments)
    if arguments.server is not None:
        return search_server(arguments, lines)

    with LoadingLine("libraries"):
        lighten_lancedb()
        from virtue_pl.search import VectorIndex
        from virtue_pl.search.queries import check_lines, embed_queries
        from virtue_pl.types.requests import EmbeddingRequest, read_request

    if arguments.regions is None:
        requests = [read_request(EmbeddingRequest, value) for _, value in lines]
    else:
        requests = check_lines(lines, regions_name(arguments))
    index = VectorIndex.open(arguments.index, arguments.storage_options)
    for problem in [] if arguments.exact else index.problems():
        print(f"virtue-pl: {problem}", file=sys.stderr)
    with LoadingLine("the model"):
        embedder = load_model(arguments, index)
        queries = embed_queries(embedder, index, requests, access(arguments))
    vectors = [query.vector for query in queries]
    found = index.search(vectors, arguments.top, arguments.where, arguments.exact)
    print_answers(arguments, queries, found, {"index": index.uri, "model": index.facts.model})
    return 0


def search_server(arguments: argparse.Namespace, lines: Sequence[tuple[int, dict[str, Any]]]) -> int:
    """Search through a running server, and print the hits; returns the exit code. Neither torch nor pydantic is loaded.

    Only a sheet needs torch, to draw the prompts.
    """
    from virtue_pl.cli.keys import read_key_file, read_keys
    from virtue_pl.search.queries import Query
    from virtue_pl.search.server_client import SearchServer, name_line

    requests = [request for _, request in lines]
    keys = read_keys(None) if arguments.api_key_file is None else read_key_file(arguments.api_key_file)
    server = SearchServer(arguments.server, keys[0] if keys else None)
    try:
        reply = server.search(requests, arguments.top, arguments.where, arguments.exact)
    except VirtueError as error:
        if arguments.regions is None:
            raise VirtueError(name_line(str(error), "", ())) from error
        raise VirtueError(name_line(str(error), regions_name(arguments), [line for line, _ in lines])) from error
    for problem in reply.problems:
        print(f"virtue-pl: {problem}", file=sys.stderr)
    queries = [Query(requests[number], region) for number, region, _ in reply.answers]
    if arguments.sheet is not None:
        queries = decode_queries(queries, access(arguments))
    found = [hits for _, _, hits in reply.answers]
    print_answers(arguments, queries, found, {"index": reply.index, "model": reply.model})
    return 0


def decode_queries(queries: Sequence[Query], access: Any) -> list[Query]:
    """Return queries with their images and regions decoded, for a sheet."""
    from dataclasses import replace

    with LoadingLine("libraries"):
        from virtue_pl.preprocessing.requests import decode_request

    decoded = {id(query.request): decode_request(query.request, access) for query in queries}
    return [replace(query, row=decoded[id(query.request)][query.region or 0]) for query in queries]


def print_answers(
    arguments: argparse.Namespace, queries: Sequence[Query], found: Sequence[Sequence[Hit]], about: dict[str, str]
) -> None:
    """Print the hits as a table or JSON, and write the sheet. about: the names of the index and of its model."""
    if arguments.sheet is not None:
        write_sheet(arguments, queries, found)
    if arguments.json:
        print(json.dumps(to_json(about, queries, found), indent=1, default=str))
    else:
        print_tables(queries, found)


SERVER_OWN = ("model", "device", "storage_options")
"""Options of the model and the index, which a server has set for itself."""


def check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with 2 for options that do not go together."""
    prompted = arguments.box or arguments.point or arguments.mask
    own = arguments.text or arguments.image or arguments.instruction or prompted
    if arguments.regions is not None and own:
        parser.error("--regions gives whole requests, expected no other option of a query beside it")
    if arguments.regions is None and not (arguments.text or arguments.image):
        parser.error("there is no query, expected --text, --image or --regions")
    if prompted and not arguments.image:
        parser.error("--box, --point and --mask are of an image, expected --image")
    if (arguments.index is None) == (arguments.server is None):
        found = "neither" if arguments.index is None else "both"
        parser.error(f"found {found} of FOLDER and --server, expected the folder of an index, or a running server")
    if arguments.server is None and arguments.api_key_file is not None:
        parser.error("--api-key-file is of a server, expected --server")
    loading = [each.name for each in fields(LoadingOptions) if hasattr(arguments, each.name)]
    changed = [name for name in SERVER_OWN if getattr(arguments, name) != parser.get_default(name)]
    if arguments.server is not None and (changed or loading):
        name = [*changed, *loading][0].replace("_", "-").removesuffix("s")
        parser.error(f"--{name} is set where the server starts, expected no such option beside --server")


def read_queries(arguments: argparse.Namespace) -> list[tuple[int, dict[str, Any]]]:
    """Return the requests of the options, or of `--regions` with the numbers of their lines."""
    from virtue_pl.search.queries import read_lines, read_mask

    if arguments.regions == "-":
        return read_lines(sys.stdin, regions_name(arguments))
    if arguments.regions is not None:
        if not Path(arguments.regions).is_file():
            raise VirtueError(f"--regions: there is no file {arguments.regions}")
        with Path(arguments.regions).open(encoding="utf-8") as lines:
            return read_lines(lines, arguments.regions)
    region: dict[str, Any] = {} if arguments.box is None else {"box": arguments.box}
    if arguments.point:
        region |= {"points": [point[:2] for point in arguments.point]}
        region |= {"labels": [int(point[2]) if len(point) == 3 else 1 for point in arguments.point]}
    if arguments.mask is not None:
        region["mask"] = read_mask(arguments.mask)
    values = {
        "text": arguments.text,
        "instruction": arguments.instruction,
        "image": arguments.image,
        "regions": [region] if region else None,
        "units": arguments.units,
    }
    return [(1, {key: value for key, value in values.items() if value is not None})]


def regions_name(arguments: argparse.Namespace) -> str:
    """Return the name of `--regions`, for errors."""
    return "standard input" if arguments.regions == "-" else str(arguments.regions)


def load_model(arguments: argparse.Namespace, index: VectorIndex) -> Embedder:
    """Return the embedder of the queries: of `--model`, or else of the model by which the index was encoded."""
    from virtue_pl.embedder import Embedder

    options: dict[str, Any] = vars(read_options(LoadingOptions, arguments))
    try:
        return Embedder.from_pretrained(
            arguments.model or index.facts.model, device=arguments.device, max_pixels=arguments.max_pixels, **options
        )
    except VirtueError as error:
        if arguments.model is not None:
            raise
        raise VirtueError(f"{error}; the index was encoded by that model: say where it is now with --model") from error


def access(arguments: argparse.Namespace) -> Any:
    """Return the limits of the queries' images."""
    from virtue_pl.preprocessing.requests import ImageAccess

    return ImageAccess(max_pixels=arguments.max_pixels)


def write_sheet(arguments: argparse.Namespace, queries: Sequence[Query], found: Sequence[Sequence[Hit]]) -> None:
    """Write the contact sheet; say which images it lacks, and how many queries."""
    from virtue_pl.apps.contact_sheet import MOST_QUERIES, ImageFolder, write_contact_sheet

    images = ImageFolder(arguments.images)
    write_contact_sheet(arguments.sheet, queries, found, images)
    print(f"wrote {arguments.sheet}", file=sys.stderr)
    if len(queries) > MOST_QUERIES:
        print(f"virtue-pl: the sheet has the first {MOST_QUERIES} of {len(queries)} queries", file=sys.stderr)
    if images.missing:
        first = next(iter(images.missing))
        print(
            f"virtue-pl: {len(images.missing)} images of hits were not found, such as {first}: name the folder that was"
            " encoded with --images",
            file=sys.stderr,
        )


def to_json(about: dict[str, str], queries: Sequence[Query], found: Sequence[Sequence[Hit]]) -> dict[str, Any]:
    """Return the hits as JSON: of each query the request, and of each hit all but what is missing."""
    answers = []
    for query, hits in zip(queries, found, strict=True):
        request = shorten(query.request)
        rows = [{key: value for key, value in asdict(hit).items() if value not in (None, {})} for hit in hits]
        answers.append({"query": request, "region": query.region, "hits": rows})
    return {**about, "answers": answers}


def shorten(value: Any) -> Any:
    """Return JSON in which long strings are cut."""
    if isinstance(value, Mapping):
        return {key: shorten(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shorten(each) for each in value]
    return f"{value[:LONGEST]}..." if isinstance(value, str) and len(value) > LONGEST else value


def print_tables(queries: Sequence[Query], found: Sequence[Sequence[Hit]]) -> None:
    """Print a table of each query's hits."""
    from rich.console import Console

    for query, hits in zip(queries, found, strict=True):
        Console().print(
            hits_table(query.name, hits) if hits else f"{query.name}: no row answers the filter", markup=False
        )


def hits_table(title: str, hits: Sequence[Hit]) -> Table:
    """Return a table of hits: the columns that any of them has."""
    from rich.markup import escape
    from rich.table import Column, Table

    own = list(dict.fromkeys(name for hit in hits for name, value in hit.columns.items() if value is not None))
    extra = [name for name in ("text", "box", "quality") if any(getattr(hit, name) is not None for hit in hits)]
    table = Table(
        Column("rank", justify="right"),
        Column("score", justify="right"),
        Column("name", overflow="fold"),
        *(Column(name, overflow="fold", no_wrap=name == "box") for name in (*extra, *own)),
        title=escape(title),
        title_justify="left",
    )
    for hit in hits:
        values = [getattr(hit, name) for name in extra] + [hit.columns.get(name) for name in own]
        cells = [str(hit.rank), f"{hit.score:.3f}", hit.name, *map(format_cell, values)]
        table.add_row(*map(escape, cells))
    return table


def format_cell(value: Any) -> str:
    """Return a value as a table shows it: numbers short, "" for none."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list):
        return " ".join(f"{each:.2f}" if isinstance(each, float) else str(each) for each in value)
    return "" if value is None else str(value)


def numbers(text: str, counts: tuple[int, ...]) -> list[float]:
    """Return numbers parted by commas. Raises ArgumentTypeError for other text, or another count of them."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts:
        expected = " or ".join(map(str, counts))
        raise argparse.ArgumentTypeError(f"expected {expected} numbers parted by commas, found {text!r}")
    return found


def box(text: str) -> list[float]:
    """Return a box, x0,y0,x1,y1."""
    return numbers(text, (4,))


def point(text: str) -> list[float]:
    """Return a point, x,y or x,y,label. Raises ArgumentTypeError for a label that is neither 0 nor 1."""
    found = numbers(text, (2, 3))
    if len(found) == 3 and found[2] not in (0, 1):
        raise argparse.ArgumentTypeError(f"expected the label 1 (inside) or 0 (outside), found {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl search",
        description="Finds the rows of an index that are nearest to a query, which is embedded by the model that the"
        " index was encoded by. Coordinates are pixels of the upright image, x before y, from the top left.",
    )
    parser.add_argument(
        "index", metavar="FOLDER", nargs="?", help="what `virtue-pl index` has written, or s3://BUCKET/PREFIX"
    )
    parser.add_argument(
        "--server", metavar="URL", help="ask a running `virtue-pl serve` with --index instead, as http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="the key of the server; default VIRTUE_API_KEY"
    )
    query = parser.add_argument_group("query")
    query.add_argument("--text", help="words, alone or beside the image")
    query.add_argument("--image", metavar="FILE", help="an image")
    query.add_argument("--box", type=box, metavar="X0,Y0,X1,Y1", help="box around a region of the image")
    query.add_argument(
        "--point",
        type=point,
        action="append",
        metavar="X,Y[,0|1]",
        help="click on a region, 1 inside (default) or 0 outside; may be given several times",
    )
    query.add_argument(
        "--mask", type=Path, metavar="FILE", help="mask of a region: an image, black outside, or COCO's run lengths"
    )
    query.add_argument("--units", choices=("pixel", "normalized"), help="of the coordinates (default pixel)")
    query.add_argument("--instruction", help="what to look for; it stands before the text")
    query.add_argument(
        "--regions", metavar="FILE", help="queries as JSON Lines, a request each, from a file or - (standard input)"
    )
    parser.add_argument("--top", type=positive_number, default=10, metavar="N", help="hits of a query (default 10)")
    parser.add_argument("--where", metavar="SQL", help='condition on the rows, as "quality > 0.8 AND year = 2026"')
    parser.add_argument("--exact", action="store_true", help="compare every row, whatever index there is")
    parser.add_argument("--json", action="store_true", help="print the hits as JSON")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet with the regions drawn")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the folder that was encoded, for the sheet")
    parser.add_argument(
        "--model", help="folder, hub name or checkpoint of the model; default: where it was when it encoded the rows"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto: a GPU where there is one")
    add_options(parser, LoadingOptions)
    add_max_pixels(parser)
    add_storage_options(parser)
    return parser
