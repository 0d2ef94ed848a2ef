"""Folders of shards: tars of images with their rows, and the manifest that describes them.

One tar record is one image: `000000123.jpg` (its bytes as they were found) and `000000123.json`, `{"image": PATH,
"rows": [...]}`, so that an image with several regions is stored, read and encoded once. Rows with several images stand
beside `000000123.jpg`, `000000123.1.jpg`, `000000123.2.jpg`, ..., and rows of text alone beside none; the json then
gives their number, `"pictures": 3`. A record's number is its index in the folder, counted over all shards.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from virtue_pl.data.io.archives import is_apple_double
from virtue_pl.data.io.atomic import first_sha256
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.io.remote import RemoteFolder, is_remote
from virtue_pl.features.store import StoredFeatures
from virtue_pl.types import VirtueError, replace_whole, suggest_path

FORMAT = "virtue_pl shards 1"
MANIFEST = "manifest.json"
SHARD_KEYS = {"images": "pictures", "rows_per_image": "rows_per_picture"}
"""Keys of a manifest by the field of `Shard`, where they differ."""
NAMED_SKIPS = 1000
"""Number of skipped rows that a manifest names; all are counted."""
FIRST_SKIPS = 3
"""Number of rows of each reason that it names in any case."""


@dataclass(frozen=True)
class Shard:
    """One tar of a folder.

    Example:
        >>> shard = Shard("shard-000000.tar", images=2, rows=3, bytes=10_240, sha256="0123", rows_per_image=(1, 2))
        >>> shard.to_json()["pictures"]
        2
    """

    name: str
    images: int
    """Number of records, whatever the number of images in them."""
    rows: int
    bytes: int
    sha256: str
    rows_per_image: tuple[int, ...]
    """Number of rows of each record, in order."""

    def to_json(self) -> dict[str, Any]:
        """Return the shard as it stands in a manifest."""
        return {SHARD_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Shard:
        """Return the shard that `to_json` wrote. Raises KeyError or TypeError for another mapping."""
        names = {SHARD_KEYS.get(name, name): name for name in cls.__dataclass_fields__}
        return cls(**{names[key]: as_tuples(value) for key, value in content.items()})


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards, and their origin.

    Example:
        >>> shard = Shard("shard-000000.tar", 2, 3, 10_240, "0123", (1, 2))
        >>> Manifest("SCAR_mini", "pairs", "scar_mini", "region captions", "CC0", "", (shard,)).rows
        3
    """

    name: str
    kind: str
    """Either "pairs" (training) or "rankings" (evaluation)."""
    task: str
    meta_task: str
    licence: str
    source: str
    """Fingerprint of what was converted, and how."""
    shards: tuple[Shard, ...]
    negatives: tuple[int, int] = (0, 0)
    """The fewest and the most hard negatives of a row."""
    rankings: tuple[str, ...] = ()
    """Names under which the rows are scored."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of rows left out, by reason."""
    skipped_rows: tuple[tuple[str, str], ...] = ()
    """Key and problem of the first rows left out."""
    distribution: str = ""
    """Either "IND" or "OOD", where the benchmark says whether the dataset is trained on; else ""."""
    finished: bool = False
    format: str = FORMAT

    @property
    def rows(self) -> int:
        """Return the number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> int:
        """Return the number of records in all shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the data itself: SHA-256 over the shards' checksums."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the manifest to `path`, whole or not at all."""
        content = {
            **asdict(self),
            "shards": [shard.to_json() for shard in self.shards],
            "rows": self.rows,
            "pictures": self.images,
            "fingerprint": self.fingerprint,
        }
        with replace_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def check_totals(self, content: Mapping[str, Any]) -> None:
        """Raise ValueError where the shards are not those that `write` summed up in `content`."""
        for shard in self.shards:
            if (shard.images, shard.rows) != (len(shard.rows_per_image), sum(shard.rows_per_image)):
                raise ValueError(f"the counts of {shard.name} do not add up")
            if Path(shard.name).name != shard.name or not shard.name.endswith(".tar"):
                raise ValueError(f"a shard is called {shard.name!r}, expected NAME.tar")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is named twice")
        for name, found in (("rows", self.rows), ("pictures", self.images), ("fingerprint", self.fingerprint)):
            if content.get(name, found) != found:
                raise ValueError(f"the {name} of its shards are {found}, its own {content[name]}")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Return the manifest of a file. Raises VirtueError where it is no finished manifest of this format."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = cls.__dataclass_fields__
            values = {name: as_tuples(value) for name, value in content.items() if name in names}
            manifest = cls(**{**values, "shards": tuple(Shard.from_json(shard) for shard in content["shards"])})
            manifest.check_totals(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VirtueError(
                f"{path} is no manifest of shards ({error}): write the shards again with `virtue-pl shards`"
            ) from error
        if manifest.format != FORMAT or not manifest.finished:
            raise VirtueError(
                f"{path}: found {manifest.format!r}, finished {manifest.finished}, expected {FORMAT!r}, finished: write"
                " the shards again"
            )
        return manifest


def as_tuples(value: Any) -> Any:
    """Return lists, also those inside lists, as tuples; any other value as it is."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ShardFolder:
    """A finished folder of shards, and how its images are read.

    Example:
        >>> folder = ShardFolder.open("shards/SCAR_mini", option="train")  # doctest: +SKIP
        >>> folder.limit_rows(100).manifest.rows  # doctest: +SKIP
        100
    """

    path: Path
    manifest: Manifest
    """One that was cut by `limit_rows` describes the first records only; the rest of the shards is passed over."""
    features: StoredFeatures | None = None
    """Stored features of the images; None where they are not read."""
    remote: RemoteFolder | None = None
    """Where shards that have not been copied yet come from."""
    resize_to_square: int | None = None
    """See `Record`."""

    is_limited: bool = False
    """Whether `limit_rows` has cut the manifest: the last shard may hold more records than it says."""

    @classmethod
    def open(
        cls, path: str | Path, option: str, cache: CacheOptions = CacheOptions(), check: bool = True
    ) -> ShardFolder:
        """Open a folder of shards, or the URL of one.

        A URL's shards are copied to a folder in `cache.folder` when they are read; once all are copied, that folder can
        be named in place of the URL. Raises VirtueError, which names `option` (the setting that gave the path), where
        shards are missing or not as long as the manifest says, and for shards that it does not name; without `check`
        only where there is no manifest.
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
                f" change {option}{suggest_path(path)}"
            )
        folder = cls(path, Manifest.read(path / MANIFEST))
        problem = folder.find_problem() if check else ""
        if problem:
            raise VirtueError(f"{option}: {problem}: write them again, or change {option}")
        return folder

    def find_problem(self) -> str:
        """Return what is wrong with the folder's files by their names and lengths; "" where nothing is."""
        lengths = {shard.name: shard.bytes for shard in self.manifest.shards}
        found = {name: file_length(self.path / name) for name in lengths}
        missing = [name for name, length in found.items() if length is None]
        if missing:
            return f"{self.path} lacks {len(missing)} of {len(found)} shards, e.g. {missing[0]}"
        changed = [name for name, length in found.items() if length != lengths[name]]
        if changed:
            name = changed[0]
            return (
                f"{self.path} has {len(changed)} of {len(found)} shards that are not those of its {MANIFEST}, e.g."
                f" {name} with {found[name]:,} bytes, expected {lengths[name]:,}"
            )
        unnamed_tars = self.unnamed_tars()
        return f"{self.path} holds {unnamed_tars[0]}, which its {MANIFEST} does not name" if unnamed_tars else ""

    def unnamed_tars(self) -> list[str]:
        """Return the names of tars in the folder that the manifest does not name."""
        named = {shard.name for shard in self.manifest.shards}
        found = sorted(path.name for path in self.path.glob("*.tar"))
        return [name for name in found if name not in named and not is_apple_double(name)]

    @contextmanager
    def hold_file(self, name: str) -> Iterator[Path]:
        """Provide the file of a shard, copied from its URL if need be, which is kept while it is read.

        A shard of rankings is compared with its checksum when a process first reads it (a copy whenever it does), since
        a result is only worth what was ranked; one of training is when it is copied, and by `virtue-pl doctor`. Raises
        VirtueError where it cannot be read, or is another file than the manifest says.
        """
        shard = self.shard(name)
        held = (
            nullcontext(self.path / name)
            if self.remote is None
            else self.remote.hold_file(name, shard.bytes, shard.sha256)
        )
        with held as path:
            if self.manifest.kind == "rankings":
                self.check_content(shard, path)
            yield path

    def check_content(self, shard: Shard, path: Path) -> None:
        """Raise VirtueError where a file has another content than that of the shard."""
        try:
            found = first_sha256(path)
        except OSError as error:
            raise VirtueError(f"{path} cannot be read ({error.strerror}): write the shards again") from error
        if found != shard.sha256:
            mend = "delete it, it is copied again" if self.remote is not None else "write the shards again"
            raise VirtueError(
                f"{path} is not the shard of its {MANIFEST}: SHA-256 {found[:12]}..., expected {shard.sha256[:12]}...:"
                f" {mend}"
            )

    def shard(self, name: str) -> Shard:
        """Return the shard of that name."""
        return self._by_name[name]

    def first_record(self, name: str) -> int:
        """Return the index of the first record of a shard."""
        return self._first_records[name]

    def may_hold_more(self, name: str) -> bool:
        """Return whether a shard may hold more records than the manifest, which was cut, says."""
        return self.is_limited and name == self.manifest.shards[-1].name

    def limit_rows(self, rows: int | None) -> ShardFolder:
        """Return the folder of the first images alone, as many as have at most `rows` rows; None for all."""
        if rows is None or rows >= self.manifest.rows:
            return self
        whole: list[Shard] = []
        for shard in self.manifest.shards:
            counts = counts_within(shard.rows_per_image, rows - sum(found.rows for found in whole))
            if counts:
                whole.append(replace(shard, images=len(counts), rows=sum(counts), rows_per_image=counts))
            if len(counts) < shard.images:
                break
        return replace(self, manifest=replace(self.manifest, shards=tuple(whole)), is_limited=True)

    def shards_within(self, rows: int | None) -> tuple[Shard, ...]:
        """Return all shards, or the first ones that hold `rows` rows."""
        ends = accumulate(shard.rows for shard in self.manifest.shards)
        return tuple(
            shard
            for shard, end in zip(self.manifest.shards, ends, strict=True)
            if rows is None or end - shard.rows < rows
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the path of every shard."""
        return tuple(self.path / shard.name for shard in self.manifest.shards)

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.manifest.shards}

    @cached_property
    def _first_records(self) -> dict[str, int]:
        starts = accumulate((shard.images for shard in self.manifest.shards), initial=0)
        return {shard.name: start for shard, start in zip(self.manifest.shards, starts, strict=False)}


def file_length(path: Path) -> int | None:
    """Return the length of a file in bytes; None where it is no file."""
    return path.stat().st_size if path.is_file() else None


def counts_within(counts: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return the first of the counts whose sum is at most `rows`."""
    return counts[: bisect_right(tuple(accumulate(counts)), rows)]
