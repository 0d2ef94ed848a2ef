"""Folders of shards: tars of pictures with their rows, and the manifest that says what is in them.

One tar record is one picture: `000000123.jpg` (its bytes as they were found) and `000000123.json`,
`{"image": PATH, "rows": [...]}`, so that a picture with several regions is stored, read and encoded once.
Rows that speak of several pictures stand beside `000000123.jpg`, `000000123.1.jpg`, `000000123.2.jpg`, ..., and rows of text
alone beside none; the json then says how many there are, `"pictures": 3`.
The number is the record's place in the folder, counted over all shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from virtue_pl.data.records import picture_member
from virtue_pl.data.secure_webdataset import wds
from virtue_pl.feature_store import StoredFeatures
from virtue_pl.types import DataError, VirtueError

FORMAT = "virtue_pl shards 1"
MANIFEST = "manifest.json"
NAMED_SKIPS = 1000
"""How many skipped rows a manifest names; all are counted."""


@dataclass(frozen=True)
class Shard:
    """One tar. `pictures` counts its records, whatever the number of pictures in them; `rows_per_picture` has each one's rows, in order."""

    name: str
    pictures: int
    rows: int
    bytes: int
    sha256: str
    rows_per_picture: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and where it came from.

    kind: "pairs" (training) or "rankings" (evaluation). source: fingerprint of what was converted, and how.
    negatives: the fewest and the most hard negatives of a row. rankings: names that the rows are scored under.
    skipped: rows left out, counted by reason; the first of them with key and problem in `skipped_rows`.
    """

    name: str
    kind: str
    task: str
    meta_task: str
    licence: str
    source: str
    shards: tuple[Shard, ...]
    negatives: tuple[int, int] = (0, 0)
    rankings: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_rows: tuple[tuple[str, str], ...] = ()
    finished: bool = False
    format: str = FORMAT

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def pictures(self) -> int:
        return sum(shard.pictures for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The data itself: sha256 over the shards' checksums."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, path: Path) -> None:
        content = {**asdict(self), "rows": self.rows, "pictures": self.pictures, "fingerprint": self.fingerprint}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises VirtueError where the file is no finished manifest of this format."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = cls.__dataclass_fields__
            values = {name: _tuples(value) for name, value in content.items() if name in names}
            manifest = cls(**{**values, "shards": tuple(Shard(**{k: _tuples(v) for k, v in shard.items()}) for shard in content["shards"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VirtueError(f"{path} is no manifest of shards ({error}): write the shards again with `virtue-pl shards`") from error
        if manifest.format != FORMAT or not manifest.finished:
            raise VirtueError(f"{path}: found {manifest.format!r}, finished {manifest.finished}, expected {FORMAT!r}, finished: write the shards again")
        return manifest


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ShardFolder:
    """A finished folder of shards, and where its pictures' stored features are read, if they are."""

    path: Path
    manifest: Manifest
    features: StoredFeatures | None = None

    @classmethod
    def open(cls, path: str | Path, option: str) -> ShardFolder:
        """Raises VirtueError naming `option` (which setting gave the path) where shards are missing."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise VirtueError(f"{option}: {path} holds no shards ({MANIFEST} is not there): write them with `virtue-pl shards`, or change {option}")
        folder = cls(path, Manifest.read(path / MANIFEST))
        missing = [shard.name for shard in folder.manifest.shards if not (path / shard.name).is_file()]
        if missing:
            raise VirtueError(f"{option}: {path} lacks {len(missing)} of {len(folder.manifest.shards)} shards, e.g. {missing[0]}: write them again")
        return folder

    def shards_within(self, rows: int | None) -> tuple[Shard, ...]:
        """All shards, or the first ones that hold `rows` rows."""
        ends = accumulate(shard.rows for shard in self.manifest.shards)
        return tuple(shard for shard, end in zip(self.manifest.shards, ends, strict=True) if rows is None or end - shard.rows < rows)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.path / shard.name for shard in self.manifest.shards)


class ShardWriter:
    """Writes the shards of one folder; nothing is seen under the folder's name before `finish`.

    Args:
        folder: where the shards will be; must not be there yet.
        pictures_per_shard: when the next tar begins, in records.
    """

    def __init__(self, folder: Path, pictures_per_shard: int) -> None:
        if pictures_per_shard < 1:
            raise VirtueError(f"pictures per shard is {pictures_per_shard}, expected 1 or more")
        self.folder = folder
        self.pictures_per_shard = pictures_per_shard
        self.partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(self.partial, ignore_errors=True)  # of a run that was stopped
        self.partial.mkdir(parents=True)
        self.shards: list[Shard] = []
        self.skipped: Counter[str] = Counter()
        self.skipped_rows: list[tuple[str, str]] = []
        self._pending: list[tuple[Sequence[tuple[bytes, str]], str, Sequence[Mapping[str, Any]]]] = []
        self._records = 0

    def add(self, pictures: Sequence[tuple[bytes, str]], image: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One record: pictures, each as (bytes, extension), and all rows that speak of them. `image` says where they are from."""
        self._pending.append((pictures, image, rows))
        if len(self._pending) == self.pictures_per_shard:
            self._write_shard()

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Counts rows that are left out; the problem's words before ":" are the reason."""
        self.skipped[error.problem.partition(":")[0]] += rows
        if len(self.skipped_rows) < NAMED_SKIPS:
            self.skipped_rows.append((error.key, error.problem))

    def _write_shard(self) -> None:
        path = self.partial / f"shard-{len(self.shards):06d}.tar"
        with path.open("wb") as stream, wds.TarWriter(stream, encoder=False, mtime=0) as tar:
            for pictures, image, rows in self._pending:
                count = {} if len(pictures) == 1 else {"pictures": len(pictures)}
                content = json.dumps({"image": image, **count, "rows": rows}, ensure_ascii=False, separators=(",", ":"))
                members = {picture_member(number, extension): data for number, (data, extension) in enumerate(pictures)}
                tar.write({"__key__": f"{self._records:09d}", **members, "json": content.encode()})
                self._records += 1
        counts = tuple(len(rows) for *_, rows in self._pending)
        self.shards.append(Shard(path.name, len(counts), sum(counts), path.stat().st_size, file_sha256(path), counts))
        self._pending = []

    def finish(self, **about: Any) -> Manifest:
        """Writes the manifest and gives the folder its name. `about` are the manifest's other fields."""
        if self._pending:
            self._write_shard()
        manifest = Manifest(shards=tuple(self.shards), skipped=dict(self.skipped), skipped_rows=tuple(self.skipped_rows), finished=True, **about)
        manifest.write(self.partial / MANIFEST)
        os.replace(self.partial, self.folder)
        return manifest


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
