"""Sources of documents: folders of images, one's own rows and requests, and shards."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from virtue_pl.apps.encoding.documents import Content, Document, ImageReader
from virtue_pl.apps.encoding.own_documents import own_documents
from virtue_pl.data.conversion.image_folders import IMAGE_SUFFIXES, metadata_file
from virtue_pl.data.conversion.own_sources import OwnSource, find_sources
from virtue_pl.data.eval_sets.own import shard_folders_in
from virtue_pl.data.formats.own_rows import RowOptions
from virtue_pl.data.io.image_files import ImageFiles, read_file
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import Record
from virtue_pl.data.shards.stored_prompts import has_region, read_own_region
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import DataError, VirtueError, VisualPrompt, suggest_path

Documents = Literal["images", "texts", "regions"]

DOCUMENTS: tuple[Documents, ...] = ("images", "texts", "regions")
"""Kinds of documents: whole images, texts, or regions."""
FILES: dict[str, Literal["text", "tables"]] = {".jsonl": "text", ".csv": "text", ".parquet": "tables"}
"""Files that may be a source by themselves, and their form."""


class SourceOptions(NamedTuple):
    """Choice of what of a source is encoded, and how its rows are read.

    proposals: regions are proposed, so that the documents of `regions` are images. max_pixels: of images that are
    decoded. rows: what holds for rows that do not say it.

    Example:
        >>> SourceOptions("regions", proposals=True).of_images
        True
    """

    documents: Documents = "images"
    proposals: bool = False
    max_pixels: int = MAX_PIXELS
    rows: RowOptions = RowOptions()

    @property
    def of_images(self) -> bool:
        """Return whether a document is a whole image when it is read."""
        return self.documents == "images" or self.proposals


class DocumentSource(ABC):
    """A source of documents, in the same order whenever it is read.

    kind: for people. columns: the types of the documents' further values. paths: the files and folders that it reads.

    Sources, and documents that are not read yet, can be pickled.

    Example:
        >>> source = open_source(Path("photos"), SourceOptions())  # doctest: +SKIP
        >>> source.kind, source.count()  # doctest: +SKIP
        ('images', 200)
    """

    kind: str
    columns: Mapping[str, pa.DataType] = {}
    paths: tuple[Path, ...] = ()

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents; none of them is read yet."""

    @abstractmethod
    def digest(self) -> str:
        """Return what changes with the documents of the source."""

    def count(self) -> int:
        """Return the number of documents."""
        return sum(1 for _ in self.documents())


def open_source(path: Path, options: SourceOptions) -> DocumentSource:
    """Return the source at a path: a file of rows or requests, or a folder of images, of rows or of shards.

    Raises VirtueError where there is none, or it has no documents of the kind that `options` ask for.
    """
    if path.is_file():
        if path.suffix not in FILES:
            raise VirtueError(f"{path}: found a file {path.suffix or path.name!r}, expected {', '.join(FILES)}")
        form = FILES[path.suffix]
        return OwnRows(path.parent, [OwnSource(path.stem, form, path, (path,))], options)
    if not path.is_dir():
        raise VirtueError(f"there is no file or folder {path}{suggest_path(path)}")
    if shards := list(shard_folders_in(path)):
        return Shards(shards, options)
    if sources := row_sources(path, options):
        return OwnRows(path, sources, options)
    return ImageFolder(path, options)


def row_sources(root: Path, options: SourceOptions) -> list[OwnSource]:
    """Return the sources of rows in a folder; images with captions are rows only where texts are encoded."""
    try:
        found = find_sources(root, "SOURCE")
    except VirtueError:
        if next(image_paths(root), None) is None:
            raise
        return []
    plain = [source for source in found if source.form == "image folder" and metadata_file(source.path) is None]
    return [] if plain and options.documents != "texts" else found


def image_paths(root: Path, within: str = "") -> Iterator[str]:
    """Yield the paths of all images in a folder and its sub-folders, below it, ordered; one folder is held at a time.

    Hidden files and folders are passed over, and links to folders.
    """
    with os.scandir(root / within) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        path = f"{within}{name}"
        if name.startswith("."):
            continue
        if is_folder:
            yield from image_paths(root, f"{path}/")
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(root / path):
            yield path


class ImageFolder(DocumentSource):
    """All images in a folder and its sub-folders.

    Example:
        >>> source = ImageFolder(Path("photos"), SourceOptions())  # doctest: +SKIP
        >>> next(source.documents()).name  # doctest: +SKIP
        'holiday/street.jpg'
    """

    kind = "images"

    def __init__(self, root: Path, options: SourceOptions) -> None:
        self.root, self.paths = root, (root,)
        self.reader = ImageReader(options.max_pixels)
        if options.documents == "texts":
            raise VirtueError(f"{root}: found images without texts, expected rows with texts, or --documents images")
        if not options.of_images:
            raise VirtueError(
                f"{root}: found images without regions: give --propose N, or rows with regions (--documents images"
                " encodes whole images)"
            )

    def documents(self) -> Iterator[Document]:
        """Yield a document for each image, in the order of their paths."""
        for path in image_paths(self.root):
            yield Document(path, partial(self.read, path), str((self.root / path).absolute()))

    def read(self, path: str) -> Content:
        """Return an image. Raises DataError for damage."""
        return Content(images=(self.reader.decode(read_file(self.root / path, path), path),))

    @cached_property
    def _state(self) -> tuple[str, int]:
        """The hash of all paths, lengths and times of change, and the number of images."""
        found, count = sha256(), 0
        for path in image_paths(self.root):
            about = (self.root / path).stat()
            found.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
            count += 1
        return found.hexdigest(), count

    def digest(self) -> str:
        """Return a hash of the paths of all images, and of the lengths and times of their files."""
        return self._state[0]

    def count(self) -> int:
        """Return the number of images."""
        return self._state[1]


class OwnRows(DocumentSource):
    """Rows of one's own data, or requests, in one or several files.

    Example:
        >>> source = OwnRows(Path("data"), find_sources(Path("data")), SourceOptions("texts"))  # doctest: +SKIP
        >>> next(source.documents()).read().text  # doctest: +SKIP
        'a red disc'
    """

    kind = "rows"

    def __init__(self, root: Path, sources: Sequence[OwnSource], options: SourceOptions) -> None:
        self.root, self.sources, self.options = root, sources, options
        self.paths = (root, *(path for source in sources for path in source.files))
        self.columns = {} if options.of_images or options.documents == "texts" else {"target": pa.string()}
        self.reader = ImageReader(options.max_pixels)

    def documents(self) -> Iterator[Document]:
        """Yield the documents of all files, in the order of their names."""
        seen: set[bytes] = set()
        what = "images" if self.options.of_images else self.options.documents
        for source in self.sources:
            source.check_columns(self.options.rows.ignored_columns)
            folders = tuple(dict.fromkeys((*source.image_folders, self.root)))
            files = ImageFiles.find(self.root, given=folders)
            yield from own_documents(source, self.root, files, self.reader, what, self.options.rows, seen)

    def digest(self) -> str:
        """Return a hash of the files that the rows are read from."""
        return sha256("\n".join(f"{source.name} {source.digest()}" for source in self.sources).encode()).hexdigest()


class Shards(DocumentSource):
    """Images, or regions, of the records in folders of shards.

    Example:
        >>> source = Shards([Path("shards/SCAR_mini")], SourceOptions("regions"))  # doctest: +SKIP
        >>> next(source.documents()).name  # doctest: +SKIP
        'SCAR_mini/000000000 (a.jpg)'
    """

    kind = "shards"

    def __init__(self, folders: Sequence[Path], options: SourceOptions) -> None:
        if options.documents == "texts":
            raise VirtueError(
                f"{folders[0]}: texts of shards are not encoded, expected the rows that they were made of, or"
                " --documents images or regions"
            )
        self.folders = [ShardFolder.open(folder, "SOURCE") for folder in folders]
        self.paths = tuple(folders)
        self.options = options
        self.reader = ImageReader(options.max_pixels)

    def documents(self) -> Iterator[Document]:
        """Yield a document for each image, or for each record, whose regions are those of its rows."""
        for folder in self.folders:
            log = SkipLog(BadSampleLimits(max_bad_samples=0))
            for record in read_shards([{"url": str(path)} for path in folder.paths], folder, log):
                if not self.options.of_images:
                    yield Document(record.key, partial(self.regions, record), self.where(folder, record))
                    continue
                for number, data in enumerate(record.data):
                    name = f"{record.key}/{number}" if number else record.key
                    where = self.where(folder, record) + (f"/{number}" if number else "")
                    yield Document(name, partial(self.image, data, name), where)

    @staticmethod
    def where(folder: ShardFolder, record: Record) -> str:
        """Return where a record's first image is."""
        return f"{folder.path.absolute()}#{record.index:09d}"

    def image(self, data: bytes, name: str) -> Content:
        """Return an image. Raises DataError for damage."""
        return Content(images=(self.reader.decode(data, name),))

    def regions(self, record: Record) -> Content:
        """Return a record's first image with the regions of its rows. Raises DataError where it has none."""
        rows = [row for row in record.rows if has_region(row)]
        if not rows:
            raise DataError(record.key, "no region: none of its rows has one")
        image = self.reader.decode(record.data[0], record.key)
        regions = [read_own_region(row, image.size) for row in rows]
        prompts = [
            found.given
            if not found.given.is_empty
            else VisualPrompt(
                boxes=found.box[None], masks=VisualPrompt().masks if found.mask is None else found.mask[None]
            )
            for found in regions
        ]
        return Content(images=(image,), regions=tuple((prompt,) for prompt in prompts))

    def digest(self) -> str:
        """Return a hash of the folders' manifests."""
        return sha256("\n".join(folder.manifest.fingerprint for folder in self.folders).encode()).hexdigest()

    def count(self) -> int:
        """Return the number of documents: of images, or of records, each of which has one image at least."""
        return sum(folder.manifest.images for folder in self.folders)
