"""A dataset's parquet files and pictures to folders of shards: what all formats share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.data.grouped_parquet import Group, column_names, grouped_rows, num_rows
from virtue_pl.data.shards import FORMAT, MANIFEST, Manifest, ShardWriter, file_sha256
from virtue_pl.types import DataError, VirtueError

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a file's name and its number of rows; what it gives is called with the number of rows done."""


@contextmanager
def silent(name: str, rows: int) -> Iterator[Advance]:
    """No progress is shown."""
    yield lambda rows: None


@dataclass(frozen=True)
class Settings:
    """What, beside its source, makes a folder of shards what it is."""

    pictures_per_shard: int
    seed: int
    licence: str
    max_pixels: int


@dataclass(frozen=True)
class SourceFile(ABC):
    """One parquet file, which becomes one folder of shards.

    images: the folder that its pictures' paths lead from. kind: "pairs" or "rankings". name: of the folder of shards.
    task: the dataset, whichever split the file is.
    """

    path: Path
    images: Path
    kind: str
    name: str
    task: str
    meta_task: str

    @property
    @abstractmethod
    def needed(self) -> Sequence[str]:
        """Columns that must be there."""

    @abstractmethod
    def optional(self, found: Sequence[str]) -> list[str]:
        """Those of the columns found that are read, too."""

    @property
    @abstractmethod
    def grouped_by(self) -> tuple[str, ...]:
        """The columns that say which rows share a record, see `record_key`."""

    @abstractmethod
    def record_key(self, *values: Any) -> str:
        """Rows with the same key, made from their values in `grouped_by`, share a record."""

    @abstractmethod
    def write_record(self, group: Group, writer: ShardWriter, max_pixels: int) -> list[dict[str, Any]]:
        """Writes one record with the usable rows of the group, which are returned; the others are noted."""

    def columns(self) -> list[str]:
        """What is read. Raises VirtueError where a needed column is missing."""
        found = column_names(self.path)
        missing = [name for name in self.needed if name not in found]
        if missing:
            raise VirtueError(f"{self.path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")
        return list(dict.fromkeys([*self.needed, *self.optional(found)]))


def convert(files: Sequence[SourceFile], out: Path, settings: Settings, progress: Progress) -> dict[str, Manifest]:
    """Writes OUT/NAME for every file: shards of records in seeded random order, and a manifest.

    What is finished from the same source is kept; a stopped file is begun anew. Rows that cannot be used are left out, counted
    and named in the manifest. Raises VirtueError for missing columns, and for shards in OUT that were made from something else.
    """
    columns = {file: file.columns() for file in files}
    finished = {file: _finished(file, out / file.name, settings) for file in files}
    return {file.name: finished[file] or _convert(file, out, columns[file], settings, progress) for file in files}


def licence_of(root: Path, published: str) -> str:
    """What composed scenes say of themselves, or else `published`."""
    scenes = root / "scenes.json"
    if not scenes.is_file():
        return published
    licences: dict[str, str] = json.loads(scenes.read_text(encoding="utf-8"))["licences"]
    return "; ".join(f"{name}: {licence}" for name, licence in licences.items())


def _source(file: SourceFile, settings: Settings) -> str:
    return hashlib.sha256(f"{FORMAT} {file_sha256(file.path)} {settings}".encode()).hexdigest()


def _finished(file: SourceFile, folder: Path, settings: Settings) -> Manifest | None:
    if not folder.exists():
        return None
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest is None or manifest.source != _source(file, settings):
        raise VirtueError(f"{folder} holds something else than shards of {file.path} with these settings: remove it, or change --out")
    return manifest


def _convert(file: SourceFile, out: Path, columns: list[str], settings: Settings, progress: Progress) -> Manifest:
    writer = ShardWriter(out / file.name, settings.pictures_per_shard)
    negatives: set[int] = set()
    rankings: dict[str, None] = {}
    with progress(file.name, num_rows(file.path)) as advance:
        for group in grouped_rows(file.path, columns, file.grouped_by, settings.seed, key=file.record_key):
            rows = file.write_record(group, writer, settings.max_pixels)
            negatives |= {len(row["negatives"]) for row in rows if "negatives" in row}
            rankings |= {name: None for row in rows for name in row.get("rankings", ())}
            advance(len(group))
    return writer.finish(
        name=file.name,
        kind=file.kind,
        task=file.task,
        meta_task=file.meta_task,
        licence=settings.licence,
        source=_source(file, settings),
        negatives=(min(negatives, default=0), max(negatives, default=0)),
        rankings=tuple(rankings),
    )


def read_picture(images: Path, image: str | None, key: str) -> bytes:
    """The bytes of a picture named in a table, which may not lead out of the folder `images`."""
    path = (images / (image or "")).resolve()
    if not image or not path.is_relative_to(images.resolve()):
        raise DataError(key, f"no picture: {image!r} names no file in {images}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(key, f"missing picture: {images / image} ({error.strerror})") from error
