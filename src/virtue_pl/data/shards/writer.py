"""Writes a folder of shards, record by record; a run that was stopped goes on where its last whole shard ended."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from virtue_pl.data.io.atomic import sha256
from virtue_pl.data.shards.manifest import MANIFEST, NAMED_SKIPS, Manifest, Shard, tuples
from virtue_pl.data.shards.records import image_member
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.types import DataError, VirtueError

JOURNAL = "journal.jsonl"
"""In a half-written folder: first what it is made from, then a line for every finished shard."""


class ShardWriter:
    """Writes the shards of one folder; nothing is seen under the folder's name before `finish`.

    Until then they are in `.NAME.partial`. A writer of the same source continues such a folder: `groups` says how many
    groups of
    rows its finished shards took. Raises VirtueError for one that was made from something else, and while another
    process writes it.

    Args:
        folder: where the shards will be; must not be there yet.
        images_per_shard: when the next tar begins, in records.
        source: fingerprint of what is converted, and how.
    """

    def __init__(self, folder: Path, images_per_shard: int, source: str = "") -> None:
        if images_per_shard < 1:
            raise VirtueError(f"images per shard is {images_per_shard}, expected 1 or more")
        self.folder = folder
        self.images_per_shard = images_per_shard
        self.source = source
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.shards: list[Shard] = []
        self.groups = 0
        self.skipped: Counter[str] = Counter()
        self.skipped_rows: list[tuple[str, str]] = []
        self.negatives: set[int] = set()
        self.rankings: dict[str, None] = {}
        self._tar: Any = None
        self._counts: list[int] = []
        self._named = 0
        self.partial.mkdir(parents=True, exist_ok=True)
        self._journal = (self.partial / JOURNAL).open("a+", encoding="utf-8")
        self._lock()
        self._continue()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_tar()
        self._journal.close()

    def _close_tar(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._stream.close()
        self._tar = None

    def add(
        self,
        images: Sequence[tuple[bytes, str]],
        image_path: str,
        rows: Sequence[Mapping[str, Any]],
        paths: Sequence[str] = (),
    ) -> None:
        """One record: images, each as (bytes, extension), and all rows that speak of them. `image` says where they are
        from.

        `paths`, where each of them is from, are not kept.
        """
        if self._tar is None:
            self._stream = self._path.open("wb")
            self._tar = wds.TarWriter(self._stream, encoder=False, mtime=0)
        count = {} if len(images) == 1 else {"pictures": len(images)}
        content = json.dumps({"image": image_path, **count, "rows": rows}, ensure_ascii=False, separators=(",", ":"))
        members = {image_member(number, extension): data for number, (data, extension) in enumerate(images)}
        self._tar.write({"__key__": f"{self._records:09d}", **members, "json": content.encode()})
        self._counts.append(len(rows))
        self.negatives |= {len(row["negatives"]) for row in rows if "negatives" in row}
        self.rankings |= {name: None for row in rows for name in row.get("rankings", ())}

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Counts rows that are left out; the problem's words before ":" are the reason."""
        self.skipped[error.problem.partition(":")[0]] += rows
        if len(self.skipped_rows) < NAMED_SKIPS:
            self.skipped_rows.append((error.key, error.problem))

    def group_done(self) -> None:
        """A group of rows has been added or skipped; only here may a shard end."""
        self.groups += 1
        if len(self._counts) == self.images_per_shard:
            self._finish_shard()

    def write_manifest(self, **about: Any) -> Manifest:
        """Writes the manifest and gives the folder its name. `about` are the manifest's other fields."""
        if self._counts:
            self._finish_shard()
        manifest = Manifest(
            shards=tuple(self.shards),
            source=self.source,
            negatives=(min(self.negatives, default=0), max(self.negatives, default=0)),
            rankings=tuple(self.rankings),
            skipped=dict(self.skipped),
            skipped_rows=tuple(self.skipped_rows),
            finished=True,
            **about,
        )
        manifest.write(self.partial / MANIFEST)
        os.replace(self.partial, self.folder)
        (self.folder / JOURNAL).unlink()
        return manifest

    @property
    def _path(self) -> Path:
        return self.partial / f"shard-{len(self.shards):06d}.tar"

    @property
    def _records(self) -> int:
        return sum(shard.images for shard in self.shards) + len(self._counts)

    def _finish_shard(self) -> None:
        self._close_tar()
        path, counts = self._path, tuple(self._counts)
        self.shards.append(Shard(path.name, len(counts), sum(counts), path.stat().st_size, sha256(path), counts))
        self._counts = []
        self._note(
            shard=self.shards[-1].to_json(),
            groups=self.groups,
            skipped=self.skipped,
            skipped_rows=self.skipped_rows[self._named :],
            negatives=sorted(self.negatives),
            rankings=list(self.rankings),
        )
        self._named = len(self.skipped_rows)

    def _note(self, **line: Any) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._journal.close()
            raise VirtueError(
                f"{self.partial} is being written by another process: wait for it, or change --out"
            ) from error

    def _continue(self) -> None:
        """Takes over what the journal says is whole, and removes everything else."""
        first, *lines = journal_lines(self.partial / JOURNAL) or [{}]
        if first and first != self._first_line:
            self._journal.close()
            raise VirtueError(
                f"{self.partial} holds half of something else, made from another source or with other settings: remove"
                " it, or change --out"
            )
        kept = list(whole_shards(self.partial, lines))
        for line in kept:
            self._take(line)
        names = {shard.name for shard in self.shards} | {JOURNAL}
        for path in self.partial.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._journal.truncate(0)
        for line in [self._first_line, *kept]:
            self._note(**line)

    @property
    def _first_line(self) -> dict[str, Any]:
        return {"source": self.source, "pictures_per_shard": self.images_per_shard}

    def _take(self, line: Mapping[str, Any]) -> None:
        self.shards.append(Shard.from_json(line["shard"]))
        self.groups, self.skipped = line["groups"], Counter(line["skipped"])
        self.skipped_rows += [tuples(row) for row in line["skipped_rows"]]
        self._named = len(self.skipped_rows)
        self.negatives, self.rankings = set(line["negatives"]), dict.fromkeys(line["rankings"])


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """The journal's whole lines; one that was cut off, and what follows it, is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def whole_shards(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The lines up to the first shard that is not there as it was written."""
    for number, line in enumerate(lines):
        shard = line["shard"]
        path = folder / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"] or sha256(path) != shard["sha256"]:
            return lines[:number]
    return lines
