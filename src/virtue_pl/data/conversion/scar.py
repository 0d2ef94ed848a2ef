"""SCaR's parquet files and images to folders of shards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import Group
from virtue_pl.data.conversion.source_file import (
    Progress,
    RecordSink,
    Settings,
    SourceFile,
    convert,
    no_progress,
    read_licence,
)
from virtue_pl.data.formats.catalogue import scar_sets
from virtue_pl.data.formats.scar import form_columns, pair_row, ranking_row
from virtue_pl.data.io.archives import is_apple_double
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import DataError, VirtueError

PAIR_COLUMNS = ("qry", "qry_image_path", "pos_text", "bbox")
RANKING_COLUMNS = ("qry_text", "qry_image_path", "tgt_text", "bbox")
OPTIONAL_COLUMNS = ("neg_text", "segmentation", "category")
PUBLISHED_LICENCE = "CC-BY-NC-4.0"

LAYOUT = (("SCaR-train", "pairs", "SCAR_"), ("SCaR-eval", "rankings", "SCaR_eval_"))
"""Folders of the published repositories, each with the kind of its files and the prefix of their folders of shards."""

_PREFIX = re.compile("^SCaR_(?:eval_|train_)?", re.IGNORECASE)


@dataclass(frozen=True)
class SCaRFile(SourceFile):
    """One of SCaR's parquet files; a record is an image with its rows.

    Example:
        >>> (file,) = find_files(Path("data/scar_mini"))  # doctest: +SKIP
        >>> file.name, file.kind  # doctest: +SKIP
        ('SCAR_mini', 'pairs')
    """

    @property
    def required_columns(self) -> Sequence[str]:
        return PAIR_COLUMNS if self.kind == "pairs" else RANKING_COLUMNS

    def optional_columns(self, found: Sequence[str]) -> list[str]:
        forms = (
            [name for name in found if name in form_columns(found) or name.startswith("tgt_kinds_")]
            if self.kind == "rankings"
            else []
        )
        return [*(name for name in OPTIONAL_COLUMNS if name in found), *forms]

    @property
    def group_columns(self) -> tuple[str, ...]:
        return ("qry_image_path",)

    @property
    def image_columns(self) -> Sequence[str]:
        return ("qry_image_path",)

    def record_key(self, *values: Any) -> str:
        """Return the image's path."""
        return str(values[0])

    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        image = group[0][1]["qry_image_path"]
        try:
            data, header = self.images.read_checked(image, f"{self.name} ({image})", max_pixels)
        except DataError as error:
            for number, _ in group:
                writer.skip(DataError(f"{self.name}/{number}", error.problem))
            return
        rows = []
        to_row = pair_row if self.kind == "pairs" else ranking_row
        for number, row in group:
            try:
                rows.append(to_row(row, f"{self.name}/{number}", number, (header.height, header.width)))
            except DataError as error:
                writer.skip(error)
        if rows:
            writer.add([(data, header.extension)], image, rows)


def find_files(root: Path, images: Sequence[Path] = ()) -> list[SourceFile]:
    """Return the training and evaluation files under `root`. Raises VirtueError if there are none."""
    found = [file for folder, kind, prefix in LAYOUT for file in _find_files_in(root, folder, kind, prefix, images)]
    if not found:
        raise VirtueError(f"--root {root}: found neither SCaR-train/SCAR_*.parquet nor SCaR-eval/SCaR_eval_*.parquet")
    return found


def _find_files_in(root: Path, name: str, kind: str, prefix: str, given: Sequence[Path]) -> Iterator[SourceFile]:
    """Yield the files at any depth of the folder `name`, whose case may differ ("SCaR-Train" on the hub)."""
    for folder in sorted(path for path in root.glob("*") if path.name.lower() == name.lower()):
        images = ImageFiles.find(folder, root, given=given)
        for path in sorted(folder.rglob("*.parquet")):
            stem = re.sub(r"-00000-of-00001$", "", path.stem)
            dataset = _PREFIX.sub("", stem)
            if (dataset != stem or dataset in scar_sets()) and not is_apple_double(path.name):
                task = "scar_" + re.sub(r"_(train|val|test(_.*)?)$", "", dataset)
                yield SCaRFile(path, images, kind, prefix + dataset, task, "region captions")


def convert_scar(
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
    """Write OUT/NAME for every parquet file NAME under `root`, see `convert`.

    Args:
        root: folder of the published repositories, or of composed scenes.
        out: folder for the folders of shards.
        images: folders to look for images in, before those under `root`.
        images_per_shard: records of a tar.
        seed: of the records' order.
        licence: of the data; default that of composed scenes, or else the published SCaR's.
        max_pixels: larger images are left out.
        progress, workers: see `convert`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or read_licence(root, PUBLISHED_LICENCE), max_pixels)
    return convert(find_files(root, tuple(map(Path, images))), Path(out), settings, progress, workers)
