"""Rows of recorded evaluations: queries and candidates with their images and recorded embeddings.

SCaR: scar/data/SCaR_eval_<name>.parquet and scar/images/. MMEB: mmeb/instruct/<task>/ and mmeb/images/. Only the
images' paths are read from the parquet files; the prepared texts are in the recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from virtue_pl.checkpoints.release import path_inside
from virtue_pl.checkpoints.tensor_files import read_file, read_json
from virtue_pl.parity.golden import FORWARD, Case, box_prompt
from virtue_pl.parity.gradients import GRADIENTS
from virtue_pl.preprocessing.images import MAX_PIXELS, decode, resize_to_square
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, VirtueError, VisualPrompt

SQUARE_LENGTHS = {"high": 1344}
"""Length, in pixels, of the square to which every image is resized first, by a run's setting `image_resolution`, where
`resize_use_processor` is off.
"""


def read_evaluations(folder: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Case]:
    """Yield each dataset's queries, and its candidates, of every recorded run in the folder.

    Raises DataError for an image of more than `max_pixels`.
    """
    for path in sorted(folder.glob("*.json")):
        recorded = path.with_suffix(".safetensors")
        if (
            path.stem in (FORWARD, GRADIENTS)
            or not recorded.is_file()
            or "datasets" not in (content := read_json(path))
        ):
            continue
        tensors = read_file(recorded)
        for name, dataset in content["datasets"].items():
            yield from dataset_cases(folder, path.stem, content, (name, dataset), tensors, max_pixels)


def dataset_cases(
    folder: Path,
    run: str,
    content: Mapping[str, Any],
    named: tuple[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    max_pixels: int,
) -> Iterator[Case]:
    """Yield a recorded dataset's queries, and its candidates if they are recorded, as a case each.

    named: the dataset's name and its entry.
    """
    (name, dataset), family = named, run.split("_")[0]
    length = square_length(content.get("settings", {}))
    images = query_images(folder / family, family, name, len(dataset["queries"]))
    queries = tuple(
        row(folder / family, query["query_text"], image, query.get("sam_box"), length, max_pixels)
        for query, image in zip(dataset["queries"], images, strict=True)
    )
    yield Case(f"{run}, {name}", queries, {"embedding": tensors[f"{name}/qry"]}, frozenset(), True)
    if f"{name}/cand" in tensors:
        texts = zip(dataset["cand_texts"], dataset["cand_names"], strict=True)
        candidates = tuple(
            row(folder / family, text, image_of_candidate(candidate), None, length, max_pixels)
            for text, candidate in texts
        )
        yield Case(f"{run}, {name}, candidates", candidates, {"embedding": tensors[f"{name}/cand"]}, frozenset(), True)


def square_length(settings: Mapping[str, Any]) -> int | None:
    """Return the length, in pixels, of the square to which images are resized first; None where they are not."""
    return (
        None
        if settings.get("resize_use_processor", True)
        else SQUARE_LENGTHS.get(str(settings.get("image_resolution")))
    )


def query_images(folder: Path, family: str, name: str, count: int) -> list[str]:
    """Return the paths of the queries' images, relative to `images`; empty where a query has none."""
    import pyarrow.parquet as parquet

    tables = {
        "scar": (f"data/SCaR_eval_{name.removeprefix('SCaR_')}.parquet", "qry_image_path"),
        "mmeb": (f"instruct/{name}", "qry_img_path"),
    }
    if family not in tables:
        raise VirtueError(f"{folder}: an evaluation of {family!r}, expected one of {', '.join(tables)}")
    table, column = tables[family]
    path = folder / table
    rows = (
        parquet.read_table(next(iter(sorted(path.glob("*.parquet"))), path) if path.is_dir() else path)
        .column(column)
        .to_pylist()
    )
    if len(rows) != count:
        raise VirtueError(f"{path} has {len(rows)} rows, expected the {count} of the recorded queries")
    return [str(value) for value in rows]


def image_of_candidate(candidate: str) -> str:
    """Return the image in a candidate's name, which may go on with `:` and a caption; its text, if it has no image."""
    return candidate.split(":")[0]


def row(
    folder: Path, text: str, image_name: str, box: list[float] | None, length: int | None, max_pixels: int
) -> EmbeddingInput:
    """Return a recorded row. Its box (x0, y0, x1, y1) is in pixels of the canvas of 1024 x 1024.

    length: of the square to which the image is resized first, in pixels.
    """
    if IMAGE_TOKEN not in text:
        return EmbeddingInput(text)
    path = path_inside(folder / "images", image_name)
    if not path.is_file():
        raise VirtueError(f"{folder / 'images'} has no image {image_name}, expected that of the row {text[:40]!r}")
    image = decode(path.read_bytes(), image_name, max_pixels)
    return EmbeddingInput(
        text,
        (image if length is None else resize_to_square(image, length),),
        VisualPrompt() if box is None else box_prompt(box),
        (image_name,),
    )
