"""A dataset's parquet files and images to folders of shards: what all formats share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import Group, column_names, grouped_rows, num_rows
from virtue_pl.data.conversion.parallel_files import in_processes
from virtue_pl.data.conversion.parallel_records import RecordSink, records_in_order
from virtue_pl.data.io.atomic import sha256
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import FORMAT, MANIFEST, Manifest
from virtue_pl.data.shards.writer import ShardWriter
from virtue_pl.types import VirtueError

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

    images_per_shard: int
    seed: int
    licence: str
    max_pixels: int


@dataclass(frozen=True)
class SourceFile(ABC):
    """One parquet file (or one of which a parquet file was made, `rows_in`), which becomes one folder of shards.

    images: where its images are. kind: "pairs" or "rankings". name: of the folder of shards.
    task: the dataset, whichever split the file is. distribution: see `Manifest`.
    """

    path: Path
    images: ImageFiles
    kind: str
    name: str
    task: str
    meta_task: str
    distribution: str = ""
    rows_in: Path | None = None

    @property
    def table(self) -> Path:
        """The parquet file with the rows."""
        return self.rows_in or self.path

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
    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        """Writes one record with the usable rows of the group; the others are noted."""

    def columns(self) -> list[str]:
        """What is read. Raises VirtueError where a needed column is missing."""
        found = column_names(self.table)
        missing = [name for name in self.needed if name not in found]
        if missing:
            raise VirtueError(f"{self.path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")
        return list(dict.fromkeys([*self.needed, *self.optional(found)]))

    def num_rows(self) -> int:
        return num_rows(self.table)

    def groups(self, seed: int) -> Iterator[Group]:
        """The rows that share a record, in seeded random order; the same for the same file and seed."""
        return grouped_rows(self.table, self.columns(), self.grouped_by, seed, key=self.record_key)


def convert(
    files: Sequence[SourceFile], out: Path, settings: Settings, progress: Progress, workers: int = 1
) -> dict[str, Manifest]:
    """Writes OUT/NAME for every file: shards of records in seeded random order, and a manifest.

    What is finished from the same source is kept; a stopped file goes on behind its last whole shard. Rows that cannot
    be used are left
    out, counted and named in the manifest. Raises VirtueError for missing columns, and for shards in OUT that were made
    from something else.

    Args:
        workers: how many processes; files are converted at a time, each by one of them, or where there are fewer files
            one by one, each
            by all. What is written is the same for any number, and a stopped run may go on with another.
    """
    for file in files:
        file.columns()
    found = {file.name: _finished(file, out / file.name, settings) for file in files}
    todo = [file for file in files if found[file.name] is None]
    if 1 < workers <= len(todo):
        made = in_processes(partial(_convert, out=out, settings=settings), todo, progress, workers)
    else:
        made = {file.name: _convert(file, out, settings, progress, workers) for file in todo}
    return {file.name: found[file.name] or made[file.name] for file in files}


def licence_of(root: Path, published: str) -> str:
    """What composed scenes say of themselves, or else `published`."""
    scenes = root / "scenes.json"
    if not scenes.is_file():
        return published
    licences: dict[str, str] = json.loads(scenes.read_text(encoding="utf-8"))["licences"]
    return "; ".join(f"{name}: {licence}" for name, licence in licences.items())


def _source(file: SourceFile, settings: Settings) -> str:
    return hashlib.sha256(f"{FORMAT} {sha256(file.path)} {settings}".encode()).hexdigest()


def _finished(file: SourceFile, folder: Path, settings: Settings) -> Manifest | None:
    if not folder.exists():
        return None
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest is None or manifest.source != _source(file, settings):
        raise VirtueError(
            f"{folder} holds something else than shards of {file.path} with these settings: remove it, or change --out"
        )
    return manifest


def _convert(file: SourceFile, out: Path, settings: Settings, progress: Progress, workers: int = 1) -> Manifest:
    with ShardWriter(out / file.name, settings.images_per_shard, _source(file, settings)) as writer:
        with progress(file.name, file.num_rows()) as advance:
            groups = file.groups(settings.seed)
            advance(sum(len(group) for group in islice(groups, writer.groups)))
            written = (
                _write(file, groups, writer, settings)
                if workers == 1
                else _write_held(file, groups, writer, settings, workers)
            )
            for rows in written:
                writer.group_done()
                advance(rows)
        return writer.write_manifest(
            name=file.name,
            kind=file.kind,
            task=file.task,
            meta_task=file.meta_task,
            licence=settings.licence,
            distribution=file.distribution,
        )


def _write(file: SourceFile, groups: Iterator[Group], writer: ShardWriter, settings: Settings) -> Iterator[int]:
    """The number of rows of every group, once it is written."""
    for group in groups:
        file.write_record(group, writer, settings.max_pixels)
        yield len(group)


def _write_held(
    file: SourceFile, groups: Iterator[Group], writer: ShardWriter, settings: Settings, workers: int
) -> Iterator[int]:
    """The same, where other processes make the records."""
    for held in records_in_order(file, groups, settings.max_pixels, workers):
        held.give(writer)
        yield held.rows
