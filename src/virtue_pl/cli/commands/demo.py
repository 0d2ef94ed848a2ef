"""`virtue-pl demo`: a page in the browser to click, drag boxes and paint masks in images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtue_pl.cli.arguments import add_max_pixels
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.dataclass_options import add_options, read_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.evaluation.settings import LoadingOptions
from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.apps.demo.page import Sources
    from virtue_pl.apps.demo.quickstart import QuickstartFiles
    from virtue_pl.embedder import Embedder

GROUP = "models"
SCENE_ROWS = 700
"""Rows of the quickstart's test that the page shows and indexes, those that its table is of."""
CAPTIONS = ("a person", "an animal", "a plant", "a vehicle", "a building", "food", "furniture", "a tool")
"""Captions of images that have none."""


def main(argv: list[str]) -> int:
    """Serve the page until Ctrl+C; returns the exit code."""
    arguments = _parser().parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise VirtueError(f"demo needs {error.name}: pip install 'virtue_pl[demo]'") from error

    with LoadingLine("the model"):
        from virtue_pl.apps.demo.page import Page, launch_options

        sources = read_sources(arguments)
    page = Page(sources).build()
    page.queue(default_concurrency_limit=4)
    try:
        _, address, _ = page.launch(
            server_name=arguments.host,
            server_port=arguments.port or None,
            prevent_thread_lock=True,
            max_file_size="64mb",
            **launch_options(),
        )
    except OSError as error:
        raise VirtueError(f"--port {arguments.port} on {arguments.host} is taken: name another one") from error
    print(f"the page is at {address} (Ctrl+C ends it)", file=sys.stderr)
    page.block_thread()
    return 0


def read_sources(arguments: argparse.Namespace) -> Sources:
    """Return what the page works with: the quickstart's files where nothing is named.

    Raises VirtueError for what is not there, and an index of another model.
    """
    from virtue_pl.apps.demo.answers import Answerer
    from virtue_pl.apps.demo.images import ImageShelf
    from virtue_pl.apps.demo.page import Sources
    from virtue_pl.search import VectorIndex

    own = arguments.model or arguments.images or arguments.index
    files = None if own else quickstart_files(arguments)
    model = arguments.model or (str(files.model) if files else None)
    if model is None:
        raise VirtueError("--model: there is none, expected an exported folder, a release or a checkpoint")
    embedder = load(arguments, model)
    captions, instruction, index = read_captions(arguments.captions), arguments.instruction, None
    scenes: dict[str, list[str]] = {}
    if files is not None:
        from virtue_pl.apps.demo.quickstart import captions_of_scenes, instruction_of_scenes, read_scenes

        rows = list(read_scenes(files.rows, SCENE_ROWS))
        scenes = captions_of_scenes(rows)
        instruction = instruction or instruction_of_scenes(rows)
        index = scene_index(embedder, rows, files)
    if arguments.index is not None:
        index = VectorIndex.open(arguments.index)
        index.check_query_model(embedder.fingerprint(), embedder.embed_dim, model)
        for problem in index.problems():
            print(f"virtue-pl: {problem}", file=sys.stderr)
    root = files.data if files else arguments.images
    other = arguments.other or (str(files.other) if files and files.other.is_file() else None)
    return Sources(
        Answerer(embedder, instruction),
        ImageShelf(root, scenes, max_pixels=arguments.max_pixels),
        index,
        None if other is None else lambda: Answerer(load(arguments, other), instruction),
        captions,
        (
            Path(model).name if own else "with the segmentation stream",
            "without it" if files else Path(other or "").name,
        ),
    )


def quickstart_files(arguments: argparse.Namespace) -> QuickstartFiles:
    """Return the quickstart's files. Raises VirtueError where it has not run here."""
    from virtue_pl.apps.demo.quickstart import QuickstartFiles

    files = QuickstartFiles(arguments.runs, arguments.data)
    if not files.model.is_file():
        raise VirtueError(
            f"there is no {files.model}: run `virtue-pl quickstart` in this folder, name its --runs and --data, or give"
            " --model and --images"
        )
    return files


def scene_index(embedder: Embedder, rows: Sequence[Any], files: QuickstartFiles) -> Any:
    """Return the index of the scenes' regions, which is made where there is none, or another model's."""
    from virtue_pl.apps.demo.quickstart import build_index
    from virtue_pl.cli.progress import show_rate
    from virtue_pl.search import VectorIndex

    if files.index.is_dir():
        index = VectorIndex.open(files.index)
        if index.facts.fingerprint == embedder.fingerprint():
            return index
    print(f"encoding the regions of {len(rows)} rows for the search, once, into {files.index}", file=sys.stderr)
    build_index(embedder, rows, files, show_rate)
    return VectorIndex.open(files.index)


def load(arguments: argparse.Namespace, model: str) -> Embedder:
    """Return a model."""
    from virtue_pl.embedder import Embedder

    options: dict[str, Any] = vars(read_options(LoadingOptions, arguments))
    return Embedder.from_pretrained(model, device=arguments.device, max_pixels=arguments.max_pixels, **options)


def read_captions(path: Path | None) -> tuple[str, ...]:
    """Return the captions of a text file, one a line. Raises VirtueError for a file that is empty, or not there."""
    if path is None:
        return CAPTIONS
    if not path.is_file():
        raise VirtueError(f"--captions: there is no file {path}")
    found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not found:
        raise VirtueError(f"--captions: {path} is empty, expected captions, one a line")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl demo",
        description="Opens a page to click, drag boxes and paint masks in images, and shows what the model makes of it:"
        " the mask, a ranking of captions, a search. Without --model, --images and --index it starts with what the"
        " quickstart left.",
    )
    parser.add_argument("--model", metavar="SOURCE", help="an exported folder, a release, a hub name or a run's .ckpt")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images to begin with, and those of the index")
    parser.add_argument("--index", metavar="FOLDER", help="what `virtue-pl index` wrote, encoded by the same model")
    parser.add_argument("--other", metavar="SOURCE", help="a second model, to compare with")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="captions to begin with, one a line")
    parser.add_argument("--instruction", default="", help="the text beside the image when captions are ranked")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/quickstart"), help="the quickstart's runs (default %(default)s)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/scar_mini_stamps"),
        help="the quickstart's scenes (default %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, default=7860, help="default %(default)s; 0 takes a free one")
    parser.add_argument("--device", default="auto", help="default: a GPU where there is one")
    add_max_pixels(parser)
    add_options(parser, LoadingOptions)
    return parser
