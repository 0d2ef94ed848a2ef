"""Own pairs and rankings, as JSON Lines or parquet with images beside, to folders of shards.

A line or row has `query` and `query_image`, and for training `target`, `target_image`, `negatives` and
`negative_images`, for evaluation `candidates` and `candidate_images`, the right one first. Texts and images may be
missing, but not both. `bbox` ([x, y, width, height] in pixels) and `segmentation` (COCO's) give the region of its image
that a query is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.conversion.grouped_parquet import column_names
from virtue_pl.data.conversion.json_lines import to_parquet
from virtue_pl.data.conversion.mmeb import MMEBFile
from virtue_pl.data.conversion.source_file import Progress, Settings, convert, no_progress, read_licence
from virtue_pl.data.formats.mmeb import RowImages, pair_row, ranking_row
from virtue_pl.data.formats.scar import run_lengths, xyxy
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.preprocessing.images import MAX_PIXELS, read_header
from virtue_pl.types import DataError, VirtueError

QUERY = ("query", "query_image")
TARGET = ("target", "target_image")
CANDIDATES = ("candidates", "candidate_images")
NEGATIVES = ("negatives", "negative_images")
REGION = ("bbox", "segmentation")

_TYPES = {"bbox": pa.list_(pa.float64()), **dict.fromkeys((*CANDIDATES, *NEGATIVES), pa.list_(pa.string()))}
SCHEMA = pa.schema(
    [(name, _TYPES.get(name, pa.string())) for name in (*QUERY, *TARGET, *CANDIDATES, *NEGATIVES, *REGION)]
)
"""Columns of JSON Lines; a segmentation is stored as JSON."""


@dataclass(frozen=True)
class PairFile(MMEBFile):
    """A file of own pairs or rankings. Rows share a record as MMEB's do.

    Example:
        >>> (file,) = find_files(Path("my_pairs"), tables=Path("tables"))  # doctest: +SKIP
        >>> file.kind, file.name  # doctest: +SKIP
        ('pairs', 'train')
    """

    @property
    def required_columns(self) -> Sequence[str]:
        return ()

    def optional_columns(self, found: Sequence[str]) -> list[str]:
        return [name for name in SCHEMA.names if name in found]

    @property
    def group_columns(self) -> tuple[str, ...]:
        found = column_names(self.table)
        return tuple(
            name
            for name in ("query_image", TARGET[1] if self.kind == "pairs" else CANDIDATES[1], "query")
            if name in found
        )

    @property
    def image_columns(self) -> Sequence[str]:
        return (QUERY[1], TARGET[1], CANDIDATES[1], NEGATIVES[1])

    def record_key(self, *values: Any) -> str:
        named = dict(zip(self.group_columns, values, strict=True))
        return super().record_key(
            named.get("query_image"), named.get(TARGET[1]) or named.get(CANDIDATES[1]), named.get("query")
        )

    def to_row(self, row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
        texts = {
            "qry": row.get("query"),
            "qry_image_path": row.get("query_image"),
            "qry_text": row.get("query"),
            "qry_img_path": row.get("query_image"),
        }
        if self.kind == "rankings":
            stored = ranking_row(
                {**texts, "tgt_text": row.get("candidates"), "tgt_img_path": row.get("candidate_images")},
                key,
                number,
                row_images,
            )
        else:
            target = {"pos_text": row.get("target"), "pos_image_path": row.get("target_image")}
            negatives = {"neg_text": row.get("negatives"), "neg_image_path": row.get("negative_images")}
            stored = pair_row({**texts, **target, **negatives}, key, number, row_images)
        return {**stored, **region(row, stored["query"][1], row_images, key)}


def region(row: Mapping[str, Any], image: int | None, row_images: RowImages, key: str) -> dict[str, Any]:
    """Return the stored region of the query's image; empty where the row has none.

    Raises DataError for a region without an image.
    """
    if row.get("bbox") is None:
        if row.get("segmentation"):
            raise DataError(key, "no box: a segmentation alone, expected bbox beside it")
        return {}
    if image is None:
        raise DataError(key, "box without an image: the query has none")
    header = read_header(row_images.images[image][0], key, row_images.max_pixels)
    size = (header.height, header.width)
    return {"box": xyxy(row["bbox"], key, size), "mask": run_lengths(row.get("segmentation"), key, size)}


def find_files(root: Path, tables: Path, images: Sequence[Path] = ()) -> Iterator[PairFile]:
    """Yield the files in `root`; those of JSON Lines become parquet files in the folder `tables`.

    Raises VirtueError if there are none, or columns are missing.
    """
    found = sorted(
        path for path in root.glob("*") if path.suffix in (".jsonl", ".parquet") and not path.name.startswith(".")
    )
    if not found:
        raise VirtueError(f"--root {root}: found neither *.jsonl nor *.parquet")
    stems = [path.stem for path in found]
    for path in found:
        if stems.count(path.stem) > 1:
            raise VirtueError(
                f"{path}: another file has the same name, {path.stem}, expected one for each folder of shards:"
                " rename one"
            )
        table = path if path.suffix == ".parquet" else tables / f"{path.stem}.parquet"
        if table is not path:
            to_parquet(path, table, SCHEMA, (QUERY, (*TARGET, *CANDIDATES)))
        kind = "rankings" if _is_evaluation(path, table) else "pairs"
        yield PairFile(path, ImageFiles.find(root, given=images), kind, path.stem, path.stem, "own", parquet_copy=table)


def _is_evaluation(path: Path, table: Path) -> bool:
    """Return whether the rows are for evaluation. Raises VirtueError where the columns of both kinds are missing."""
    names = column_names(table)
    if not set(QUERY) & set(names) or not {*TARGET, *CANDIDATES} & set(names):
        raise VirtueError(
            f"{path} lacks query or query_image, or target, target_image, candidates or candidate_images; it has"
            f" {', '.join(names)}"
        )
    if table == path:
        return bool(set(CANDIDATES) & set(names))
    with pq.ParquetFile(table) as file:
        batches = file.iter_batches(columns=list(CANDIDATES))
        return any(batch.column(name).null_count < len(batch) for batch in batches for name in CANDIDATES)


def convert_pairs(
    root: str | Path,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    images_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
    workers: int = 1,
) -> dict[str, Manifest]:
    """Write OUT/NAME for every NAME.jsonl and NAME.parquet in `root`, see `convert`.

    Their images are in `root`/images or in the folders `images`. The arguments are those of `convert_scar`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or read_licence(root, "not stated"), max_pixels)
    with TemporaryDirectory(prefix="virtue-pl-") as tables:
        return convert(
            list(find_files(root, Path(tables), tuple(map(Path, images)))), Path(out), settings, progress, workers
        )
