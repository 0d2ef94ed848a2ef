"""Digests of a folder's rows, one a row, by which equal ones are found without reading any shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from virtue_pl.data.io.remote import AbsentFile
from virtue_pl.data.shards.manifest import Shard, ShardFolder
from virtue_pl.data.shards.record_index import RecordIndex, read_members
from virtue_pl.data.shards.records import read_record
from virtue_pl.types import DataError, replace_whole

Digests = NDArray[np.int64]
DigestOf = Callable[[Mapping[str, Any], Sequence[bytes]], int]
"""Returns the digest of a stored row, given its record's images as bytes."""


@dataclass(frozen=True)
class RowDigests:
    """Digests of one kind, which lie beside the shards in NAME.safetensors.

    name: of the file and of its tensor, which holds one digest a row in the order of the shards, with a checksum of
    them and those of the shards. digest: of one row.

    Example:
        >>> RowDigests("targets", lambda row, images: 0).file
        'targets.safetensors'
    """

    name: str
    digest: DigestOf

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.name}.safetensors"

    def read(self, folder: ShardFolder) -> Digests | None:
        """Return the digest of every row, from the folder's file or, where it has none, from its shards.

        None where the shards are not on this machine either.
        """
        found = self.read_file(self.find_file(folder), folder)
        if found is None and folder.remote is None:
            found = np.array(
                [digest for shard in folder.manifest.shards for digest in self.of_shard(folder, shard.name)],
                dtype=np.int64,
            )
            self.write_where_possible(folder, found)
        return None if found is None else found[: folder.manifest.rows].astype(np.int64)

    def find_file(self, folder: ShardFolder) -> Path:
        """Return where the folder's digests are, or would be; those of a URL are copied once.

        Raises VirtueError where a URL cannot be read: without digests other batches would be cut than elsewhere.
        """
        path = folder.path / self.file
        if folder.remote is not None and self.read_file(path, folder) is None:
            try:
                return folder.remote.fetch(self.file)
            except AbsentFile:  # written before there were digests
                pass
        return path

    def read_file(self, path: Path, folder: ShardFolder) -> Digests | None:
        """Return the digests of a file; None where there is none, or it is of other shards."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about, found = file.metadata() or {}, file.get_tensor(self.name)
        except (SafetensorError, OSError, TypeError):  # of a type that numpy lacks
            return None
        (own, *listed), expected = about.get("sha256", "none").split(), checksums(folder.manifest.shards)
        if found.dtype != np.int64 or found.ndim != 1 or own != checksum_of(found):
            return None
        is_theirs = len(found) >= folder.manifest.rows and listed[: len(expected)] == expected
        return found if is_theirs else None

    def write(self, folder: Path, digests: Sequence[int], shards: Sequence[Shard]) -> None:
        """Write the digests of all rows beside the shards."""
        stored = np.array(digests, dtype=np.int64)
        # one entry: safetensors writes several in an order of its own
        about = {"sha256": " ".join([checksum_of(stored), *checksums(shards)])}
        with replace_whole(folder / self.file) as temporary:
            save_file({self.name: stored}, temporary, about)

    def write_where_possible(self, folder: ShardFolder, digests: Digests) -> None:
        """Write the digests of a whole folder, unless it cannot be written."""
        if folder.is_limited:
            return
        try:
            self.write(folder.path, digests.tolist(), folder.manifest.shards)
        except OSError:
            pass

    def of_shard(self, folder: ShardFolder, name: str) -> Iterator[int]:
        """Yield the digest of every row of a shard, in order; of a record that is damaged, those of no other row.

        Raises VirtueError for a shard that is not the one of its manifest.
        """
        shard, first = folder.shard(name), folder.first_record(name)
        with folder.hold_file(name) as path, open(path, "rb") as file:
            index = RecordIndex.build(folder, name, path)
            for number, rows in enumerate(shard.rows_per_image):
                try:
                    record = read_record(read_members(file, index, number), folder.manifest.name, folder.manifest.task)
                    index.check_rows(folder, record, rows)
                    yield from (self.digest(row.fields, record.data) for row in record.rows)
                except DataError:
                    yield from (self.digest({"row": f"{first + number}/{row}"}, ()) for row in range(rows))


def checksum_of(digests: Digests) -> str:
    """Return a checksum of digests: every rank plans batches by its own copy of them, and all must be equal."""
    return hashlib.blake2b(np.ascontiguousarray(digests).tobytes(), digest_size=8).hexdigest()


def checksums(shards: Sequence[Shard]) -> list[str]:
    """Return the first digits of every shard's checksum, by which a file of digests is known to be theirs."""
    return [shard.sha256[:16] for shard in shards]
