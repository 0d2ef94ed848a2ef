"""Positions of a shard's records in its tar, by which one record is read without those before it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.record_count import RecordCount
from virtue_pl.data.shards.records import Record


class Member(NamedTuple):
    """A file inside a tar: its extension (`jpg`, `1.jpg`, `json`), the position of its first byte, and its length.

    A sparse one, such as `tar --sparse` writes for a file with holes, has its parts by their offset in the file, with
    their lengths; they lie side by side in the tar.

    Example:
        >>> Member("jpg", start=512, length=40_000).extension
        'jpg'
    """

    extension: str
    start: int
    length: int
    parts: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class RecordIndex:
    """The members of every record of one shard, in the order of the records.

    Example:
        >>> index = RecordIndex.build(folder, "shard-000000.tar", path)  # doctest: +SKIP
        >>> [member.extension for member in index.members[0]]  # doctest: +SKIP
        ['jpg', 'json']
    """

    name: str
    keys: tuple[str, ...]
    members: tuple[tuple[Member, ...], ...]

    @classmethod
    def build(cls, folder: ShardFolder, name: str, path: Path) -> RecordIndex:
        """Read the headers of a shard's tar, and nothing between them.

        Raises VirtueError for one that is damaged, or is not the shard of its manifest.
        """
        count = RecordCount(folder, name)
        found: dict[str, list[Member]] = {}
        try:
            last: str | None = None
            for key, member in read_headers(path):
                if count.is_beyond(key):
                    break
                if key != last:
                    count.add(key)
                    last = key
                if member.extension in {other.extension for other in found.get(key, ())}:
                    count.fail(f"record {key} has two files {key}.{member.extension}")
                found.setdefault(key, []).append(member)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            count.fail(f"damaged tar: {error.args[0] if error.args else error!s}")
        if not found:
            count.fail("the tar holds no record")
        count.check_complete()
        keys = sorted(found, key=int)
        return cls(name, tuple(keys), tuple(tuple(found[key]) for key in keys))

    def check_rows(self, folder: ShardFolder, record: Record, expected: int) -> None:
        """Raise VirtueError for a record with another number of rows than the manifest says."""
        if len(record.rows) != expected:
            RecordCount(folder, self.name).fail(
                f"record {record.index:09d} has {len(record.rows)} rows, expected {expected}"
            )


def read_headers(path: Path) -> Iterator[tuple[str, Member]]:
    """Yield the record's key and the place of every file in a tar, in order."""
    with tarfile.open(path, "r:") as tar:
        for header in tar:
            if not header.isreg():
                continue
            key, _, extension = header.name.rpartition("/")[2].partition(".")
            holes: Any = header.sparse  # which is a list of pairs, whatever its annotation says
            parts = tuple((start, size) for start, size in holes) if header.issparse() else None
            yield key, Member(extension.lower(), header.offset_data, header.size, parts)
            tar.members = []  # type: ignore[attr-defined]  # or else it remembers every header


def read_members(file: BinaryIO, index: RecordIndex, number: int) -> dict[str, Any]:
    """Return the files of one record of a shard by extension, and its key as `__key__`, as `read_record` reads it."""
    found: dict[str, Any] = {"__key__": index.keys[number]}
    for member in index.members[number]:
        file.seek(member.start)
        found[member.extension] = file.read(member.length) if member.parts is None else read_sparse(file, member)
    return found


def read_sparse(file: BinaryIO, member: Member) -> bytes:
    """Return the content of a sparse file, of which a tar holds the parts between the holes, from their first byte."""
    content = bytearray(member.length)
    for start, size in member.parts or ():
        content[start : start + size] = file.read(size)
    return bytes(content[: member.length])
