"""Defaults of the page: the quickstart's model, its scenes with their captions, and an index of their regions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.data.formats.scar import ranked_captions
from virtue_pl.data.formats.scar_queries import instruction
from virtue_pl.embedder import Embedder
from virtue_pl.types import VirtueError, replace_whole

IMAGES = "images"
"""Folder of the scenes below that of the data, by which rows name them."""
DISTRACTORS = 3
"""Wrong captions of each row beside its right one."""


@dataclass(frozen=True)
class QuickstartFiles:
    """Files that the quickstart left.

    Example:
        >>> QuickstartFiles(Path("runs/quickstart"), Path("data/scar_mini_stamps")).model.name
        'last.ckpt'
    """

    runs: Path
    data: Path

    @property
    def model(self) -> Path:
        """The checkpoint of the model with the segmentation stream."""
        return self.runs / "virtue" / "checkpoints" / "last.ckpt"

    @property
    def other(self) -> Path:
        """The checkpoint of the model without it, which reads the box in words."""
        return self.runs / "no_segmentation" / "checkpoints" / "last.ckpt"

    @property
    def rows(self) -> Path:
        """Rows of the test scenes whose objects training has shown."""
        return self.data / "SCaR-eval" / "SCaR_eval_mini_test_seen.parquet"

    @property
    def index(self) -> Path:
        """The index of these rows' regions, made when the page first starts."""
        return self.runs / "index"


def read_scenes(path: Path, most: int) -> Iterator[Mapping[str, Any]]:
    """Yield the first rows of a SCaR file. Raises VirtueError where there is none."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise VirtueError(f"there is no file {path}: run virtue-pl quickstart, or name --model and --images")
    for batch in pq.ParquetFile(path).iter_batches(batch_size=most):
        yield from batch.to_pylist()
        return


def captions_of_scenes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return each image's captions: those that are right for one of its objects, and some that are wrong for all.

    Example:
        >>> row = {"qry_image_path": "a.jpg", "tgt_text": ["a cat on grass", "a dog on grass"]}
        >>> captions_of_scenes([row])
        {'images/a.jpg': ['a cat on grass', 'a dog on grass']}
    """
    right: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        captions, _ = ranked_captions(row, str(number))
        right.setdefault(row["qry_image_path"], []).append(captions[0])
        wrong.setdefault(row["qry_image_path"], []).extend(captions[1 : 1 + DISTRACTORS])
    return {f"{IMAGES}/{name}": sorted(dict.fromkeys([*texts, *wrong[name]])) for name, texts in right.items()}


def instruction_of_scenes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that the rows' queries have beside the image."""
    return instruction(rows[0]["qry_text"])


def request_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a request for each image as a line of JSON: its regions, each of which is a document.

    Example:
        >>> request_lines([{"qry_image_path": "a.jpg", "bbox": [10, 20, 30, 40]}])
        ['{"image": "images/a.jpg", "regions": [{"box": [10, 20, 40, 60]}], "regions_as": "each"}']
    """
    boxes: dict[str, list[list[float]]] = {}
    for row in rows:
        x, y, width, height = row["bbox"]
        boxes.setdefault(row["qry_image_path"], []).append([x, y, x + width, y + height])
    return [
        json.dumps({"image": f"{IMAGES}/{name}", "regions": [{"box": box} for box in found], "regions_as": "each"})
        for name, found in boxes.items()
    ]


def build_index(
    embedder: Embedder,
    rows: Sequence[Mapping[str, Any]],
    files: QuickstartFiles,
    progress: Callable[[int], AbstractContextManager[Callable[[int], object]]],
) -> None:
    """Encode the regions of rows and index them; what was encoded before a stop is not encoded again.

    progress: shows how many images of a number are done.
    """
    from virtue_pl.apps.encoding import EncodeOptions, encode_source, open_source
    from virtue_pl.apps.encoding.sources import SourceOptions
    from virtue_pl.search import VectorIndex

    lines = request_lines(rows)
    listed = files.data / "regions_of_the_page.jsonl"
    with replace_whole(listed) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = EncodeOptions("regions", part_documents=100, model=str(files.model), source=str(listed))
    encoded = files.runs / "index_rows"
    with progress(len(lines)) as advance:
        encode_source(embedder, open_source(listed, SourceOptions("regions")), encoded, options, advance)
    VectorIndex.build(encoded, files.index, replace=files.index.exists())
