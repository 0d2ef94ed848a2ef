"""MMEB's parquet files (training, and evaluation in its first form) and pictures to folders of shards."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from virtue_pl.data.grouped_parquet import Group
from virtue_pl.data.mmeb_rows import PictureBook, pair_row, ranking_row
from virtue_pl.data.parquet_shards import Progress, Settings, SourceFile, convert, licence_of, silent
from virtue_pl.data.shards import Manifest, ShardWriter
from virtue_pl.images import MAX_PIXELS
from virtue_pl.types import DataError, VirtueError

PAIR_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
NEGATIVE_COLUMNS = ("neg_text", "neg_image_path")
RANKING_COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
PUBLISHED_LICENCE = "that of each dataset, see MMEB"
UNKNOWN = "other"


@dataclass(frozen=True)
class MMEBFile(SourceFile):
    """One of MMEB's parquet files. Rows with the same query picture, or without one the same target pictures, share a record."""

    @property
    def needed(self) -> Sequence[str]:
        return PAIR_COLUMNS if self.kind == "pairs" else RANKING_COLUMNS

    def optional(self, found: Sequence[str]) -> list[str]:
        return [name for name in NEGATIVE_COLUMNS if name in found]

    @property
    def grouped_by(self) -> tuple[str, ...]:
        return ("qry_image_path", "pos_image_path", "qry") if self.kind == "pairs" else ("qry_img_path", "tgt_img_path", "qry_text")

    def record_key(self, *values: Any) -> str:
        query_picture, targets, text = values
        pictures = [path for path in ([targets] if isinstance(targets, str) else targets or []) if path]
        return str(query_picture or min(pictures, default=text))

    def write_record(self, group: Group, writer: ShardWriter, max_pixels: int) -> list[dict[str, Any]]:
        book = PictureBook(self.images, max_pixels)
        to_row = pair_row if self.kind == "pairs" else ranking_row
        rows = []
        for number, row in group:
            try:
                rows.append(to_row(row, f"{self.name}/{number}", number, book))
            except DataError as error:
                writer.skip(error)
        if rows:
            writer.add(book.pictures, book.first, rows)
        return rows


def meta_tasks() -> dict[str, str]:
    """The meta-task of every dataset in `mmeb_tasks.csv`."""
    lines = files(__package__).joinpath("mmeb_tasks.csv").read_text(encoding="utf-8").splitlines()
    return {row["task"]: row["meta_task"] for row in csv.DictReader(lines)}


def task_name(dataset: str) -> str:
    """A dataset's name in the table; MMEB spells "ImageNet-1K" with "_" in training."""
    return dataset.replace("-", "_")


def find_files(root: Path, train_split: str) -> list[SourceFile]:
    """The training files of a split and the evaluation files under `root`. Raises VirtueError if there are none."""
    known, found = meta_tasks(), []
    for kind, folder, split, prefix in (("pairs", "MMEB-train", train_split, "MMEB_"), ("rankings", "MMEB-eval", "test", "MMEB_eval_")):
        for path in sorted((root / folder).glob(f"*/{split}-*.parquet")):
            task = task_name(path.parent.name)
            number = "" if "-of-00001" in path.stem else "_" + path.stem.split("-")[1]
            found.append(MMEBFile(path, root / "images", kind, f"{prefix}{task}{number}", f"mmeb_{task}", known.get(task, UNKNOWN)))
    if not found:
        raise VirtueError(f"--root {root}: found neither MMEB-train/DATASET/{train_split}-*.parquet nor MMEB-eval/DATASET/test-*.parquet")
    return list(found)


def convert_mmeb(
    root: str | Path,
    out: str | Path,
    *,
    train_split: str = "original",
    pictures_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = silent,
) -> dict[str, Manifest]:
    """Writes OUT/MMEB_DATASET and OUT/MMEB_eval_DATASET for every dataset under `root`, see `convert`.

    A dataset that `mmeb_tasks.csv` does not list is converted, too, with the meta-task "other".

    Args:
        train_split: "original", or "diverse_instruction" for MMEB-train's other wording.
        licence: of the data; by default what composed scenes say of themselves, or else that each dataset has its own.
    """
    root = Path(root)
    settings = Settings(pictures_per_shard, seed, licence or licence_of(root, PUBLISHED_LICENCE), max_pixels)
    return convert(find_files(root, train_split), Path(out), settings, progress)
