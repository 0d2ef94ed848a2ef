"""The conversion of a parquet file and its images to a folder of shards, as all formats share it."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.grouped_parquet import Group, column_names, grouped_rows, num_rows
from virtue_pl.data.conversion.input_digests import input_digests
from virtue_pl.data.conversion.parallel_files import convert_in_processes
from virtue_pl.data.conversion.parallel_records import RecordSink, records_in_order
from virtue_pl.data.io.atomic import sha256
from virtue_pl.data.io.image_files import ImageFiles
from virtue_pl.data.shards.manifest import FORMAT, MANIFEST, Manifest, ShardFolder
from virtue_pl.data.shards.writer import ShardWriter, is_made_from, reopen
from virtue_pl.types import VirtueError
from virtue_pl.types.fingerprints import hash_values, library_versions

LIBRARIES = ("pycocotools",)
"""Libraries that compute what a row holds: masks of polygons. Images are copied as they are."""
Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a file's name and its number of rows; provides a function to call with the number of rows done."""


@contextmanager
def no_progress(name: str, rows: int) -> Iterator[Advance]:
    """Show no progress."""
    yield lambda rows: None


@dataclass(frozen=True)
class Settings:
    """Settings of a folder of shards; with the source's content, they determine every byte.

    Example:
        >>> Settings(images_per_shard=100, seed=0, licence="CC0", max_pixels=10_000).fingerprint_text
        "Settings(pictures_per_shard=100, seed=0, licence='CC0', max_pixels=10000)"
    """

    images_per_shard: int
    seed: int
    licence: str
    max_pixels: int

    @property
    def fingerprint_text(self) -> str:
        """Return the settings as the `source` fingerprint of a manifest spells them.

        The spelling is fixed: by it, folders of an earlier version are told from those of another source.
        """
        values = f"seed={self.seed!r}, licence={self.licence!r}, max_pixels={self.max_pixels!r}"
        return f"Settings(pictures_per_shard={self.images_per_shard!r}, {values})"


@dataclass(frozen=True)
class SourceFile(ABC):
    """One parquet file, which becomes one folder of shards.

    Example:
        >>> from virtue_pl.data.conversion.scar import find_files
        >>> for file in find_files(Path("data/scar_mini")):  # doctest: +SKIP
        ...     print(file.name, file.kind, file.num_rows())
        SCAR_mini pairs 8000
    """

    path: Path
    images: ImageFiles
    """Finder of the rows' images."""
    kind: str
    """Either "pairs" or "rankings", see `Manifest`."""
    name: str
    """Name of the folder of shards."""
    task: str
    """The dataset, whichever split the file is."""
    meta_task: str
    distribution: str = ""
    """See `Manifest`."""
    parquet_copy: Path | None = None
    """The parquet file that was made of `path`, where `path` is none."""

    @property
    def table(self) -> Path:
        """Return the parquet file with the rows."""
        return self.parquet_copy or self.path

    def source_digest(self) -> str:
        """Return a SHA-256 of what the rows are read from."""
        return sha256(self.path)

    @property
    @abstractmethod
    def required_columns(self) -> Sequence[str]:
        """Return the columns that must be in the file."""

    @abstractmethod
    def optional_columns(self, found: Sequence[str]) -> list[str]:
        """Return those of the columns found that are read, too."""

    @property
    @abstractmethod
    def group_columns(self) -> tuple[str, ...]:
        """Return the columns whose values decide which rows share a record, see `record_key`."""

    @property
    @abstractmethod
    def image_columns(self) -> Sequence[str]:
        """Return the columns that name images, one or a list of them, if they are in the file."""

    @property
    def side_inputs(self) -> str:
        """Return what shards depend on beside the table, the images and the settings, in words."""
        return f"{self.task}, {self.meta_task}, {self.distribution}"

    @abstractmethod
    def record_key(self, *values: Any) -> str:
        """Return a key made from a row's values in `group_columns`: rows with the same key share a record."""

    @abstractmethod
    def write_record(self, group: Group, writer: RecordSink, max_pixels: int) -> None:
        """Write one record with the usable rows of the group, and skip the others."""

    def columns(self) -> list[str]:
        """Return the columns to read. Raises VirtueError where a required one is missing."""
        found = column_names(self.table)
        missing = [name for name in self.required_columns if name not in found]
        if missing:
            raise VirtueError(f"{self.path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")
        return list(dict.fromkeys([*self.required_columns, *self.optional_columns(found)]))

    def num_rows(self) -> int:
        """Return the number of rows of the file."""
        return num_rows(self.table)

    def groups(self, seed: int) -> Iterator[Group]:
        """Return the rows that share a record, in seeded random order; the same for the same file and seed."""
        return grouped_rows(self.table, self.columns(), self.group_columns, seed, key=self.record_key)


def convert(
    files: Sequence[SourceFile], out: Path, settings: Settings, progress: Progress, workers: int = 1
) -> dict[str, Manifest]:
    """Write OUT/NAME for every file: shards of records in seeded random order, and a manifest.

    A folder that is finished from the same source stays as it is; a stopped file resumes behind its last whole shard.
    So does one whose images have changed since, or have come: it is written anew from the first shard that shows one
    of them, and replaced when that is done. Rows that cannot be used are left out, counted and named in the manifest.
    Raises VirtueError for missing columns, and for shards in OUT that were made from something else.

    Args:
        files: what to convert.
        out: folder for the folders of shards.
        settings: how they are written.
        progress: shows how far the conversion is.
        workers: number of processes; each converts one file at a time, or, where there are fewer files, all convert one
            file after the other. The shards are the same for any number, and a stopped run may resume with another.
    """
    for file in files:
        file.columns()
    found = {file.name: _finished(file, out / file.name, settings) for file in files}
    todo = [file for file in files if found[file.name] is None]
    if 1 < workers <= len(todo):
        made = convert_in_processes(partial(_convert, out=out, settings=settings), todo, progress, workers)
    else:
        made = {file.name: _convert(file, out, settings, progress, workers) for file in todo}
    return {file.name: found[file.name] or made[file.name] for file in files}


def read_licence(root: Path, published: str) -> str:
    """Return the licences that composed scenes in `root` name, or else `published`."""
    scenes = root / "scenes.json"
    if not scenes.is_file():
        return published
    licences: dict[str, str] = json.loads(scenes.read_text(encoding="utf-8"))["licences"]
    return "; ".join(f"{name}: {licence}" for name, licence in licences.items())


def _source(file: SourceFile, settings: Settings) -> str:
    return hash_values(FORMAT, library_versions(LIBRARIES), file.source_digest(), settings.fingerprint_text)


def _earlier_source(file: SourceFile, settings: Settings) -> str:
    """Return the source as it was written before libraries were part of it."""
    return hashlib.sha256(f"{FORMAT} {file.source_digest()} {settings.fingerprint_text}".encode()).hexdigest()


def _finished(file: SourceFile, folder: Path, settings: Settings) -> Manifest | None:
    if not folder.exists():
        return None
    try:
        manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    except VirtueError:
        manifest = None
    if manifest is not None and manifest.source == _earlier_source(file, settings):
        print(f"{folder} holds these shards of an earlier version: they are written again")
        shutil.rmtree(folder)
        return None
    if manifest is None or manifest.source != _source(file, settings):
        raise VirtueError(
            f"{folder} holds something else than shards of {file.path} with these settings: remove it, or change --out"
        )
    if ShardFolder(folder, manifest).find_problem() or not is_made_from(folder, input_digests(file, settings.seed)):
        reopen(folder)
        return None
    return manifest


def _convert(file: SourceFile, out: Path, settings: Settings, progress: Progress, workers: int = 1) -> Manifest:
    inputs = input_digests(file, settings.seed)
    with ShardWriter(out / file.name, settings.images_per_shard, _source(file, settings), inputs) as writer:
        with progress(file.name, file.num_rows()) as advance:
            groups = file.groups(settings.seed)
            advance(sum(len(group) for group in islice(groups, writer.groups)))
            written = (
                _write(file, groups, writer, settings)
                if workers == 1
                else _write_buffered(file, groups, writer, settings, workers)
            )
            for rows in written:
                writer.finish_group()
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
    """Write every group's record; yield the group's number of rows."""
    for group in groups:
        file.write_record(group, writer, settings.max_pixels)
        yield len(group)


def _write_buffered(
    file: SourceFile, groups: Iterator[Group], writer: ShardWriter, settings: Settings, workers: int
) -> Iterator[int]:
    """Write every group's record, which other processes make; yield the group's number of rows."""
    for buffered in records_in_order(file, groups, settings.max_pixels, workers):
        buffered.write_to(writer)
        yield buffered.rows
