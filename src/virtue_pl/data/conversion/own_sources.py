"""Sources of rows in a folder of one's own data: its files, by form, and how the rows of each are read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virtue_pl.data.conversion.arrow_rows import read_tables, saved_files, saved_split, table_columns
from virtue_pl.data.conversion.coco_annotations import is_coco, read_coco
from virtue_pl.data.conversion.image_folders import caption_files, is_image_folder, metadata_file, read_image_folder
from virtue_pl.data.conversion.text_rows import READERS, SourceRow
from virtue_pl.data.formats.own_columns import ROW_COLUMNS, describe_unknown
from virtue_pl.data.io.atomic import sha256
from virtue_pl.types import VirtueError, suggest_path

Form = Literal["text", "tables", "coco", "image folder"]

FORMS = (
    "*.jsonl, *.csv, *.parquet, a COCO annotation file (*.json, annotations/*.json), a folder of Hugging Face's"
    " save_to_disk or data/*.parquet, or images with captions (photo.jpg and photo.txt, or metadata.csv)"
)
MAX_NAME = 200
"""Bytes of a source's name: a folder's may have 255, and shards are written beside their place."""
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True)
class OwnSource:
    """The rows that become one folder of shards.

    Example:
        >>> for source in find_sources(Path("my_pairs")):  # doctest: +SKIP
        ...     print(source.name, source.form, sum(1 for _ in source.rows()))
        train text 1200
    """

    name: str
    form: Form
    path: Path
    """The file, or the folder."""
    files: tuple[Path, ...]
    """Files that the rows are read from."""
    image_folders: tuple[Path, ...] = ()
    """Folders of images, beside images/."""

    def rows(self) -> Iterator[SourceRow]:
        """Yield the rows. Raises VirtueError for a file that cannot be read."""
        if self.form == "tables":
            return read_tables(self.files)
        if self.form == "coco":
            return read_coco(self.path)
        return read_image_folder(self.path) if self.form == "image folder" else READERS[self.path.suffix](self.path)

    def check_columns(self, ignored: Sequence[str]) -> None:
        """Raise VirtueError, which names the closest column, where a table has one that there is not."""
        if self.form != "tables":
            return
        for path in self.files:
            names = table_columns(path)
            for name in names:
                if names.count(name) > 1:
                    raise VirtueError(f"{path}: it has the column {name!r} {names.count(name)} times, expected once")
                if name not in ROW_COLUMNS and name not in ignored:
                    raise VirtueError(
                        f"{path}: {describe_unknown(name)}; --ignore-column {name} leaves it out, and --schema prints"
                        " the columns"
                    )

    def digest(self) -> str:
        """Return a SHA-256 of all that the rows are read from."""
        if len(self.files) == 1 and self.path == self.files[0]:
            return sha256(self.path)
        parts = [f"{path.relative_to(self.path.parent)} {sha256(path)}\n" for path in self.files]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def find_sources(root: Path, option: str = "--root") -> list[OwnSource]:
    """Return the sources in a folder, ordered by name. option: what gave the folder, for messages.

    Raises VirtueError where there are none, two have one name, or a name can be none of a folder.
    """
    if not root.is_dir():
        raise VirtueError(f"{option} {root}: there is no such folder{suggest_path(root)}")
    found = [*_saved(root), *_text_files(root), *_parquet_files(root), *_coco_files(root)]
    if metadata_file(root) is not None or (not found and is_image_folder(root)):
        found.append(_image_folder(root, "train"))
    if not found:
        found = [_image_folder(folder, folder.name) for folder in _subfolders(root) if is_image_folder(folder)]
    if not found:
        raise VirtueError(f"{option} {root}: found no data, expected {FORMS}")
    names = [source.name for source in found]
    for source in found:
        if not is_folder_name(source.name):
            raise VirtueError(
                f"{source.path}: its rows are called {source.name!r}, expected the name of a folder: rename it"
            )
        if names.count(source.name) > 1:
            raise VirtueError(
                f"{source.path}: another file has the same name, {source.name}, expected one for each folder of shards:"
                " rename one"
            )
    return sorted(found, key=lambda source: str(source.path))


def is_folder_name(name: str) -> bool:
    """Return whether a source's name can be that of a folder of shards, inside of the one that was asked for."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    plain = name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
    return plain and 0 < length <= MAX_NAME


def _visible(root: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(root.glob(pattern)) if path.is_file() and not path.name.startswith(".")]


def _text_files(root: Path) -> Iterator[OwnSource]:
    for suffix in READERS:
        for path in _visible(root, f"*{suffix}"):
            if path != metadata_file(root):
                yield OwnSource(path.stem, "text", path, (path,))


def _parquet_files(root: Path) -> Iterator[OwnSource]:
    """Yield the tables in a folder and in its data/; numbered parts (train-00000-of-00002) are one source."""
    by_name: dict[str, list[Path]] = {}
    for path in (*_visible(root, "*.parquet"), *_visible(root, "data/*.parquet")):
        if path != metadata_file(root):
            by_name.setdefault(_NUMBERED.sub("", path.stem), []).append(path)
    for name, paths in by_name.items():
        parts = [path for path in paths if _NUMBERED.search(path.stem)]
        if len(parts) != len(paths):
            for path in paths:
                yield OwnSource(name, "tables", path, (path,))
        else:
            check_parts(paths)
            yield OwnSource(
                name, "tables", paths[0] if len(paths) == 1 else paths[0].parent / name, tuple(paths), (root,)
            )


def check_parts(paths: Sequence[Path]) -> None:
    """Raise VirtueError where parts of a table (train-00000-of-00002) are missing, or are of several tables."""
    numbers = [tuple(map(int, found.groups())) for path in paths if (found := _NUMBERED.search(path.stem))]
    count = numbers[0][1]
    if sorted(numbers) != [(number, count) for number in range(count)]:
        there = {number for number, _ in numbers}
        missing = [f"{number:05d}" for number in range(count) if number not in there]
        raise VirtueError(
            f"{paths[0]} is one of {count} parts, of which {len(paths)} are there"
            f"{f' ({missing[0]} is missing)' if missing else ''}: fetch the others, or rename what is there"
        )


def _coco_files(root: Path) -> Iterator[OwnSource]:
    for path in (*_visible(root, "*.json"), *_visible(root, "annotations/*.json")):
        if not is_saved(root) and is_coco(path):
            yield OwnSource(path.stem, "coco", path, (path,), (root,))


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`: one dataset, or one of several splits."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved(root: Path) -> Iterator[OwnSource]:
    """Yield what `save_to_disk` wrote: the dataset that the folder is, or those in it, by their folders' names."""
    if (root / "state.json").is_file():
        yield OwnSource(saved_split(root), "tables", root, saved_files(root), (root,))
        return
    for folder in sorted(path for path in root.glob("*") if (path / "state.json").is_file()):
        yield OwnSource(folder.name, "tables", folder, saved_files(folder), (root,))


def _subfolders(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*")) if path.is_dir() and not path.name.startswith(".")]


def _image_folder(folder: Path, name: str) -> OwnSource:
    return OwnSource(name, "image folder", folder, tuple(caption_files(folder)), (folder,))
