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
    licence_of,
    silent,
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
"""Of the published repositories: folder, what its files are, and how the folders of shards are called."""

_PREFIX = re.compile("^SCaR_(?:eval_|train_)?", re.IGNORECASE)


@dataclass(frozen=True)
class SCaRFile(SourceFile):
    """One of SCaR's parquet files; a record is an image with its rows."""

    @property
    def needed(self) -> Sequence[str]:
        return PAIR_COLUMNS if self.kind == "pairs" else RANKING_COLUMNS

    def optional(self, found: Sequence[str]) -> list[str]:
        forms = (
            [name for name in found if name in form_columns(found) or name.startswith("tgt_kinds_")]
            if self.kind == "rankings"
            else []
        )
        return [*(name for name in OPTIONAL_COLUMNS if name in found), *forms]

    @property
    def grouped_by(self) -> tuple[str, ...]:
        return ("qry_image_path",)

    def record_key(self, *values: Any) -> str:
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
    """The training and evaluation files under `root`. Raises VirtueError if there are none."""
    found = [file for folder, kind, prefix in LAYOUT for file in _files_of(root, folder, kind, prefix, images)]
    if not found:
        raise VirtueError(f"--root {root}: found neither SCaR-train/SCAR_*.parquet nor SCaR-eval/SCaR_eval_*.parquet")
    return found


def _files_of(root: Path, name: str, kind: str, prefix: str, given: Sequence[Path]) -> Iterator[SourceFile]:
    """The files in the folder `name`, as the published configs write it or as the hub does ("SCaR-Train"); further down
    in it, too.
    """
    for folder in sorted(path for path in root.glob("*") if path.name.lower() == name.lower()):
        images = ImageFiles.below(folder, root, given=given)
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
    progress: Progress = silent,
    workers: int = 1,
) -> dict[str, Manifest]:
    """Writes OUT/NAME for every parquet file NAME under `root`, see `convert`.

    Args:
        images: folders to look for images in, before those under `root`.
        licence: of the data; by default what composed scenes say of themselves, or else the published SCaR's.
        workers: see `convert`.
    """
    root = Path(root)
    settings = Settings(images_per_shard, seed, licence or licence_of(root, PUBLISHED_LICENCE), max_pixels)
    return convert(find_files(root, tuple(map(Path, images))), Path(out), settings, progress, workers)
