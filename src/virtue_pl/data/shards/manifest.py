"""Folders of shards: tars of images with their rows, and the manifest that says what is in them.

One tar record is one image: `000000123.jpg` (its bytes as they were found) and `000000123.json`,
`{"image": PATH, "rows": [...]}`, so that an image with several regions is stored, read and encoded once.
Rows that speak of several images stand beside `000000123.jpg`, `000000123.1.jpg`, `000000123.2.jpg`, ..., and rows of
text
alone beside none; the json then says how many there are, `"pictures": 3`.
The number is the record's place in the folder, counted over all shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.io.remote import RemoteFolder, is_remote
from virtue_pl.features.store import StoredFeatures
from virtue_pl.types import VirtueError

FORMAT = "virtue_pl shards 1"
MANIFEST = "manifest.json"
SHARD_KEYS = {"images": "pictures", "rows_per_image": "rows_per_picture"}
"""Fields of `Shard` that have another name in a manifest."""
NAMED_SKIPS = 1000
"""How many skipped rows a manifest names; all are counted."""


@dataclass(frozen=True)
class Shard:
    """One tar. `images` counts its records, whatever the number of images in them; `rows_per_image` has each one's
    rows, in order.
    """

    name: str
    images: int
    rows: int
    bytes: int
    sha256: str
    rows_per_image: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the shard as it stands in a manifest."""
        return {SHARD_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Shard:
        """Return the shard that `to_json` gave. Raises KeyError or TypeError for another mapping."""
        names = {SHARD_KEYS.get(name, name): name for name in cls.__dataclass_fields__}
        return cls(**{names[key]: tuples(value) for key, value in content.items()})


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and where it came from.

    kind: "pairs" (training) or "rankings" (evaluation). source: fingerprint of what was converted, and how.
    distribution: "IND" or "OOD", where the benchmark says whether the dataset is trained on, or else "".
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
    distribution: str = ""
    finished: bool = False
    format: str = FORMAT

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """The data itself: sha256 over the shards' checksums."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, path: Path) -> None:
        content = {
            **asdict(self),
            "shards": [shard.to_json() for shard in self.shards],
            "rows": self.rows,
            "pictures": self.images,
            "fingerprint": self.fingerprint,
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises VirtueError where the file is no finished manifest of this format."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = cls.__dataclass_fields__
            values = {name: tuples(value) for name, value in content.items() if name in names}
            manifest = cls(**{**values, "shards": tuple(Shard.from_json(shard) for shard in content["shards"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VirtueError(
                f"{path} is no manifest of shards ({error}): write the shards again with `virtue-pl shards`"
            ) from error
        if manifest.format != FORMAT or not manifest.finished:
            raise VirtueError(
                f"{path}: found {manifest.format!r}, finished {manifest.finished}, expected {FORMAT!r}, finished: write"
                " the shards again"
            )
        return manifest


def tuples(value: Any) -> Any:
    """Lists, inside lists too, as tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ShardFolder:
    """A finished folder of shards, and where its images' stored features are read, if they are.

    `remote` is where shards that are not there yet come from. `resize_to_square` is `Record`'s. Where `manifest` has
    been cut (`first`), its
    shards' last images are passed over.
    """

    path: Path
    manifest: Manifest
    features: StoredFeatures | None = None
    remote: RemoteFolder | None = None
    resize_to_square: int | None = None

    @classmethod
    def open(cls, path: str | Path, option: str, cache: CacheOptions = CacheOptions()) -> ShardFolder:
        """Raises VirtueError naming `option` (which setting gave the path) where shards are missing.

        A URL's shards are copied to a folder in `cache.folder` when they are read; once all are there, that folder can
        be named in its
        place.
        """
        if is_remote(path):
            manifest = Manifest.read(RemoteFolder(str(path), cache, option=option).fetch(MANIFEST))
            remote = RemoteFolder(str(path), cache, manifest.fingerprint, option)
            remote.path.mkdir(parents=True, exist_ok=True)
            manifest.write(remote.path / MANIFEST)
            return cls(remote.path, manifest, remote=remote)
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise VirtueError(
                f"{option}: {path} holds no shards ({MANIFEST} is not there): write them with `virtue-pl shards`, or"
                f" change {option}"
            )
        folder = cls(path, Manifest.read(path / MANIFEST))
        missing = [shard.name for shard in folder.manifest.shards if not (path / shard.name).is_file()]
        if missing:
            raise VirtueError(
                f"{option}: {path} lacks {len(missing)} of {len(folder.manifest.shards)} shards, e.g. {missing[0]}:"
                " write them again"
            )
        return folder

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """The shard's file, which is copied from where it lies if it is not there, and stays while it is read. Raises
        VirtueError where it cannot be had.
        """
        if self.remote is None:
            return nullcontext(self.path / name)
        shard = self._by_name[name]
        return self.remote.reading(name, shard.bytes, shard.sha256)

    def first(self, rows: int | None) -> ShardFolder:
        """The folder of the first images alone, as many as have at most `rows` rows; None for all."""
        if rows is None or rows >= self.manifest.rows:
            return self
        kept: list[Shard] = []
        for shard in self.manifest.shards:
            counts = counts_within(shard.rows_per_image, rows - sum(found.rows for found in kept))
            if counts:
                kept.append(replace(shard, images=len(counts), rows=sum(counts), rows_per_image=counts))
            if len(counts) < shard.images:
                break
        return replace(self, manifest=replace(self.manifest, shards=tuple(kept)))

    def shards_within(self, rows: int | None) -> tuple[Shard, ...]:
        """All shards, or the first ones that hold `rows` rows."""
        ends = accumulate(shard.rows for shard in self.manifest.shards)
        return tuple(
            shard
            for shard, end in zip(self.manifest.shards, ends, strict=True)
            if rows is None or end - shard.rows < rows
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.path / shard.name for shard in self.manifest.shards)

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.manifest.shards}


def counts_within(counts: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The first of the counts whose sum is at most `rows`."""
    return counts[: bisect_right(tuple(accumulate(counts)), rows)]
