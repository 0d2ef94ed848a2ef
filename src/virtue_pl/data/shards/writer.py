"""The writer of a folder of shards, record by record; a run that was stopped resumes behind its last whole shard."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from virtue_pl.data.io.atomic import sha256
from virtue_pl.data.shards.manifest import FIRST_SKIPS, MANIFEST, NAMED_SKIPS, Manifest, Shard, as_tuples
from virtue_pl.data.shards.records import image_member
from virtue_pl.data.shards.target_index import target_digest, write_targets
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.types import DataError, VirtueError, naming

JOURNAL = "journal.jsonl"
"""File in a folder of shards: a first line with its source, a line for every finished shard, with a digest of all that
its groups of rows and those before were made from, and a last line where the folder is finished.
"""


class ShardWriter:
    """Writes the shards of one folder, which appears under its name when `write_manifest` has been called.

    Until then they are in `.NAME.partial`. A writer of the same source continues such a folder: `groups` is the number
    of groups of rows in its finished shards. Raises VirtueError for one that was made from something else, and while
    another process writes it.

    Args:
        folder: where the shards will be. One that is there (`reopen`) is replaced when its successor is whole.
        images_per_shard: records of a tar.
        source: fingerprint of what is converted, and how.
        inputs: for each group of rows, a digest of what it and those before are made from beside the source, such as
            images. A half-written folder is continued up to its first shard of other inputs.

    Example:
        >>> with ShardWriter(Path("shards/mini"), images_per_shard=100) as writer:  # doctest: +SKIP
        ...     writer.add([(jpeg, "jpg")], "a.jpg", [{"row": 0, "query": "...", "target": "a cat"}])
        ...     writer.finish_group()
        ...     writer.write_manifest(name="mini", kind="pairs", task="mini", meta_task="captions", licence="CC0")
    """

    def __init__(self, folder: Path, images_per_shard: int, source: str = "", inputs: Sequence[str] = ()) -> None:
        if images_per_shard < 1:
            raise VirtueError(f"images per shard is {images_per_shard}, expected 1 or more")
        self.folder = folder
        self.images_per_shard = images_per_shard
        self.source = source
        self.inputs = inputs
        self.partial = partial_folder(folder)
        self.shards: list[Shard] = []
        self.groups = 0
        self.skipped: Counter[str] = Counter()
        self.skipped_rows: list[tuple[str, str]] = []
        self.negatives: set[int] = set()
        self.rankings: dict[str, None] = {}
        self._tar: Any = None
        self._counts: list[int] = []
        self._targets: list[int] = []
        self.targets: list[list[int] | None] = []
        """Digests of the targets of each shard's rows; None of one that an earlier version wrote."""
        self._named = 0
        self.partial.mkdir(parents=True, exist_ok=True)
        self._journal = (self.partial / JOURNAL).open("a+", encoding="utf-8")
        self._lock()
        self._resume()

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
        """Write one record: images, each as (bytes, extension), and all rows that refer to them.

        `image_path` names the images' source. `paths`, the source of each of them, are not stored.
        """
        if self._tar is None:
            self._stream = self._path.open("wb")
            self._tar = wds.TarWriter(self._stream, encoder=False, mtime=0)
        count = {} if len(images) == 1 else {"pictures": len(images)}
        content = json.dumps({"image": image_path, **count, "rows": rows}, ensure_ascii=False, separators=(",", ":"))
        members = {image_member(number, extension): data for number, (data, extension) in enumerate(images)}
        with naming(self._path):
            self._tar.write({"__key__": f"{self._records:09d}", **members, "json": content.encode()})
        self._counts.append(len(rows))
        self._targets += [target_digest(row, [data for data, _ in images]) for row in rows]
        self.negatives |= {len(row["negatives"]) for row in rows if "negatives" in row}
        self.rankings |= {name: None for row in rows for name in row.get("rankings", ())}

    def skip(self, error: DataError, rows: int = 1) -> None:
        """Count rows that are left out; the words of the problem before ":" are the reason."""
        reason = error.problem.partition(":")[0]
        self.skipped[reason] += rows
        if len(self.skipped_rows) < NAMED_SKIPS or self.skipped[reason] <= FIRST_SKIPS:
            self.skipped_rows.append((error.key, error.problem))

    def finish_group(self) -> None:
        """Count a group of rows that has been added or skipped; only here may a shard end."""
        self.groups += 1
        if len(self._counts) == self.images_per_shard:
            self._finish_shard()

    def write_manifest(self, **about: Any) -> Manifest:
        """Write the manifest, with the other fields in `about`, and give the folder its name."""
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
        if manifest.kind == "pairs" and (targets := joined(self.targets)) is not None:
            write_targets(self.partial, targets, manifest.shards)
        manifest.write(self.partial / MANIFEST)
        self._append_line(finished=finish_line(self.inputs))
        replace_folder(self.partial, self.folder)
        return manifest

    @property
    def _path(self) -> Path:
        return self.partial / f"shard-{len(self.shards):06d}.tar"

    @property
    def _records(self) -> int:
        return sum(shard.images for shard in self.shards) + len(self._counts)

    def _finish_shard(self) -> None:
        path, counts = self._path, tuple(self._counts)
        with naming(path):
            self._close_tar()
        self.shards.append(Shard(path.name, len(counts), sum(counts), path.stat().st_size, sha256(path), counts))
        self.targets.append(self._targets)
        self._counts, self._targets = [], []
        self._append_line(
            shard=self.shards[-1].to_json(),
            targets=self.targets[-1],
            groups=self.groups,
            skipped=self.skipped,
            skipped_rows=self.skipped_rows[self._named :],
            negatives=sorted(self.negatives),
            rankings=list(self.rankings),
            inputs=self._inputs_of(self.groups),
        )
        self._named = len(self.skipped_rows)

    def _inputs_of(self, groups: int) -> str:
        """Return the digest of the inputs of the first groups."""
        return self.inputs[groups - 1] if 0 < groups <= len(self.inputs) else ""

    def _append_line(self, **line: Any) -> None:
        with naming(self.partial / JOURNAL):
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

    def _resume(self) -> None:
        """Restore what the journal says is whole, and remove everything else."""
        first, *lines = journal_lines(self.partial / JOURNAL) or [{}]
        if first and first != self._first_line:
            self._journal.close()
            raise VirtueError(
                f"{self.partial} holds half of something else, made from another source or with other settings: remove"
                " it, or change --out"
            )
        current = takewhile(
            lambda line: "shard" in line and line.get("inputs", "") == self._inputs_of(line["groups"]), lines
        )
        whole = list(whole_shards(self.partial, list(current)))
        for line in whole:
            self._restore(line)
        names = {shard.name for shard in self.shards} | {JOURNAL}
        for path in self.partial.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._journal.truncate(0)
        for line in [self._first_line, *whole]:
            self._append_line(**line)

    @property
    def _first_line(self) -> dict[str, Any]:
        return {"source": self.source, "pictures_per_shard": self.images_per_shard}

    def _restore(self, line: Mapping[str, Any]) -> None:
        self.shards.append(Shard.from_json(line["shard"]))
        self.targets.append(line.get("targets"))
        self.groups, self.skipped = line["groups"], Counter(line["skipped"])
        self.skipped_rows += [as_tuples(row) for row in line["skipped_rows"]]
        self._named = len(self.skipped_rows)
        self.negatives, self.rankings = set(line["negatives"]), dict.fromkeys(line["rankings"])


def joined(lists: Sequence[Sequence[int] | None]) -> list[int] | None:
    """Return the lists as one; None where one of them is not there."""
    return None if any(each is None for each in lists) else [value for each in lists for value in each or ()]


def partial_folder(folder: Path) -> Path:
    """Return the folder in which the shards of `folder` are until they are finished."""
    return folder.with_name(f".{folder.name}.partial")


def finish_line(inputs: Sequence[str]) -> dict[str, Any]:
    """Return what the journal's last line says of a finished folder."""
    return {"groups": len(inputs), "inputs": inputs[-1] if inputs else ""}


def is_made_from(folder: Path, inputs: Sequence[str]) -> bool:
    """Return whether a finished folder was made from these inputs, see `ShardWriter`."""
    journal = folder / JOURNAL
    lines = journal_lines(journal) if journal.is_file() else []
    return bool(lines) and lines[-1].get("finished") == finish_line(inputs)


def reopen(folder: Path) -> None:
    """Make a half-written folder of a finished one, which stays; a writer then keeps its shards up to a changed one."""
    partial = partial_folder(folder)
    if partial.exists() or not (folder / JOURNAL).is_file():
        return
    partial.mkdir()
    for path in folder.glob("*.tar"):
        try:
            os.link(path, partial / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, partial / path.name)
    shutil.copyfile(folder / JOURNAL, partial / JOURNAL)  # last: without it, nothing is kept


def replace_folder(new: Path, folder: Path) -> None:
    """Give a finished folder its name; what else an older one holds, such as stored features, moves into it."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    if old.exists():
        for path in old.iterdir():
            if path.suffix != ".tar" and not (folder / path.name).exists():
                os.replace(path, folder / path.name)
        shutil.rmtree(old)


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """Return the journal's whole lines, up to one that was cut off."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def whole_shards(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the lines up to the first shard whose file is missing or has changed."""
    for number, line in enumerate(lines):
        shard = line["shard"]
        path = folder / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"] or sha256(path) != shard["sha256"]:
            return lines[:number]
    return lines
