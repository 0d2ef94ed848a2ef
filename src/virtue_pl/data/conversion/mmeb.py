"""MMEB's parquet files (training, and evaluation in both forms) and images to folders of shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import Group, column_names
from virtue_pl.data.conversion.source_file import (
    Progress,
    RecordSink,
    Settings,
    SourceFile,
    convert,
    no_progress,
    read_licence,
)
from virtue_pl.data.formats.catalogue import MMEBSet, mmeb_sets, task_name
from virtue_pl.data.formats.mmeb import RowImages, pair_row, ranking_row
from virtue_pl.data.formats.mmeb_instructions import to_one_string
from virtue_pl.data.io.archives import is_apple_double
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import DataError, VirtueError

PAIR_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
NEGATIVE_COLUMNS = ("neg_text", "neg_image_path")
RANKING_COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
PUBLISHED_LICENCE = "that of each dataset, see MMEB"
IMAGE_COLUMNS = ("qry_image_path", "qry_img_path", "pos_image_path", "neg_image_path", "tgt_img_path")
INSTRUCTION_COLUMNS = ("qry_inst", "tgt_inst")
OTHER_META_TASK = "other"
"""The meta-task of a dataset that `mmeb_tasks.csv` does not list."""

LAYOUT = (
    ("MMEB-train", "pairs", "MMEB_"),
    ("MMEB-eval", "rankings", "MMEB_eval_"),
    ("MMEB_Test_Instruct", "rankings", "MMEB_instruct_"),
)
"""Folders of the published repositories, each with the kind of its files and the prefix of their folders of shards."""


@dataclass(frozen=True)
class MMEBFile(SourceFile):
    """One of MMEB's parquet files; rows with the same query image, or else the same target images, share a record.

    Example:
        >>> (file,) = find_files(Path("data/mmeb"), "original")  # doctest: +SKIP
        >>> file.name, file.kind  # doctest: +SKIP
        ('MMEB_CIRR', 'pairs')
    """

    @property
    def required_columns(self) -> Sequence[str]:
        return PAIR_COLUMNS if self.kind == "pairs" else RANKING_COLUMNS

    def optional_columns(self, found: Sequence[str]) -> list[str]:
        return [name for name in NEGATIVE_COLUMNS if name in found]

    @property
    def group_columns(self) -> tuple[str, ...]:
        return (
            ("qry_image_path", "pos_image_path", "qry")
            if self.kind == "pairs"
            else ("qry_img_path", "tgt_img_path", "qry_text")
        )

    @property
    def image_columns(self) -> Sequence[str]:
        return IMAGE_COLUMNS

    def record_key(self, *values: Any) -> str:
        """Return the query's image, or else the first of the targets' images, or else the query's text."""
        query_image, targets, text = values
        images = [path for path in ([targets] if isinstance(targets, str) else targets or []) if path]
        return str(query_image or min(images, default=text))

    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        row_images = RowImages(self.images, max_pixels)
        rows = []
        for number, row in group:
            try:
                rows.append(self.to_row(row, f"{self.name}/{number}", number, row_images))
            except DataError as error:
                writer.skip(error)
        if rows:
            writer.add(row_images.images, row_images.first, rows, list(row_images.numbers))

    def to_row(self, row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
        """Return a row as shards store it. Raises DataError for one that cannot be used."""
        return (pair_row if self.kind == "pairs" else ranking_row)(row, key, number, row_images)


class MMEBInstructionFile(MMEBFile):
    """An evaluation file with instructions in columns of their own.

    Example:
        >>> files = find_files(Path("data/mmeb"), "original")  # doctest: +SKIP
        >>> [file.name for file in files if isinstance(file, MMEBInstructionFile)]  # doctest: +SKIP
        ['MMEB_instruct_CIRR']
    """

    @property
    def required_columns(self) -> Sequence[str]:
        return (*INSTRUCTION_COLUMNS, *RANKING_COLUMNS)

    @property
    def side_inputs(self) -> str:
        return f"{super().side_inputs}, instructions joined as {self._dataset().wording}"

    def to_row(self, row: Mapping[str, Any], key: str, number: int, row_images: RowImages) -> dict[str, Any]:
        return ranking_row(to_one_string(row, self._dataset(), key), key, number, row_images)

    def columns(self) -> list[str]:
        """Return the columns to read. Raises VirtueError also for a dataset without a wording."""
        self._dataset()
        return super().columns()

    def _dataset(self) -> MMEBSet:
        """Return the catalogue's entry. Raises VirtueError for a dataset whose wording is not in it."""
        found = mmeb_sets().get(self.task.removeprefix("mmeb_"))
        if found is None or not found.wording:
            raise VirtueError(
                f"{self.path} has instructions apart, but how {self.task} joins them is not known: give it in"
                " MMEB-eval's one-string form"
            )
        return found


def find_files(root: Path, train_split: str, images: Sequence[Path] = ()) -> list[SourceFile]:
    """Return the training files of a split and the evaluation files under `root`.

    Raises VirtueError if there are none.
    """
    found = [
        file
        for folder, kind, prefix in LAYOUT
        for file in _find_files_in(root, folder, train_split if kind == "pairs" else "test", kind, prefix, images)
    ]
    if not found:
        raise VirtueError(
            f"--root {root}: found neither MMEB-train/DATASET/{train_split}-*.parquet nor"
            " MMEB-eval/DATASET/test-*.parquet"
        )
    return found


def _find_files_in(
    root: Path, folder: str, split: str, kind: str, prefix: str, given: Sequence[Path]
) -> Iterator[SourceFile]:
    evaluated = [] if kind == "pairs" else [root / "MMEB-eval"]
    images = ImageFiles.find(root / folder, *evaluated, root, given=given)
    for path in sorted((root / folder).glob(f"*/{split}-*.parquet")):
        if is_apple_double(path.name):
            continue
        task = task_name(path.parent.name)
        about = mmeb_sets().get(task, MMEBSet(task, OTHER_META_TASK))
        number = "" if "-of-00001" in path.stem else "_" + path.stem.split("-")[1]
        apart = kind == "rankings" and "qry_inst" in column_names(path)
        form = MMEBInstructionFile if apart else MMEBFile
        yield form(path, images, kind, f"{prefix}{task}{number}", f"mmeb_{task}", about.meta_task, about.distribution)


def convert_mmeb(
    root: str | Path,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    train_split: str = "original",
    images_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = no_progress,
    workers: int = 1,
) -> dict[str, Manifest]:
    """Write OUT/MMEB_DATASET and OUT/MMEB_eval_DATASET for every dataset under `root`, see `convert`.

    Evaluation files of either form are recognised by their columns; those of MMEB_Test_Instruct become
    OUT/MMEB_instruct_DATASET. A dataset that `mmeb_tasks.csv` does not list is converted, too, with the meta-task
    "other".

    Args:
        root: folder of the published repositories.
        out: folder for the folders of shards.
        images: folders to look for images in, before those under `root`.
        train_split: "original", or "diverse_instruction" for MMEB-train's other wording.
        images_per_shard: records of a tar.
        seed: of the records' order.
        licence: of the data; default that of composed scenes, or else that each dataset has its own.
        max_pixels: larger images are left out.
        progress, workers: see `convert`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or read_licence(root, PUBLISHED_LICENCE), max_pixels)
    return convert(find_files(root, train_split, tuple(map(Path, images))), Path(out), settings, progress, workers)
