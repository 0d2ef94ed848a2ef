"""Parts of encoded rows in a folder: each is committed whole, and says which documents it is of."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.data.io.atomic import read_json
from virtue_pl.search import EncodedRow, to_table
from virtue_pl.types import VirtueError, naming, replace_whole

ABOUT = "_encoding.json"
"""File in the folder that says what was encoded; readers of parquet folders pass over names that begin so."""
LOCK = ".lock"
PART = b"virtue_pl_part"
"""Key of a part's metadata with the documents that it is of, as JSON."""
NAME = re.compile(r"part-(\d{6,})\.parquet")
TEMPORARY = re.compile(r"\.(part-\d{6,}\.(parquet|attempt)|_encoding\.json|_parts\.jsonl)\.[0-9a-f]{12}")


@dataclass(frozen=True)
class PartFacts:
    """Facts of one part.

    documents: the number of documents that it is of, with those left out. rows: of the embeddings. left_out: the name
    and problem of each document that could not be used.

    Example:
        >>> PartFacts(100, 99, (("street.jpg", "damaged image: 0 bytes"),)).documents
        100
    """

    documents: int
    rows: int
    left_out: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PartFacts:
        """Return the part that `asdict` gave the fields of."""
        left_out = tuple((str(name), str(problem)) for name, problem in content["left_out"])
        return cls(int(content["documents"]), int(content["rows"]), left_out)


class Parts(Protocol):
    """Parts in a folder, in one of the formats.

    Example:
        >>> parts: Parts = ParquetParts(Path("encoded"), schema)  # doctest: +SKIP
        >>> sum(part.rows for part in parts.written().values())  # doctest: +SKIP
        200
    """

    def written(self) -> dict[int, PartFacts]:
        """Return the parts that are there, by number."""

    def write(self, number: int, part: PartFacts, rows: Sequence[EncodedRow]) -> None:
        """Commit a part, whole or not at all."""


class ParquetParts:
    """Parts as parquet files, `part-000000.parquet` and so on.

    Example:
        >>> parts = ParquetParts(Path("encoded"), schema)  # doctest: +SKIP
        >>> parts.write(0, PartFacts(1, 1), [row])  # doctest: +SKIP
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:06d}.parquet"

    def written(self) -> dict[int, PartFacts]:
        """Return the parts that are there, by number. Raises VirtueError for a damaged one."""
        names = (NAME.fullmatch(path.name) for path in sorted(self.folder.glob("part-*.parquet")))
        return {int(name[1]): self.read(self.folder / name[0]) for name in names if name}

    def read(self, path: Path) -> PartFacts:
        """Return what a file says of its part. Raises VirtueError for one that is damaged, or of another schema."""
        try:
            schema = pq.read_schema(path)
            part = PartFacts.from_json(json.loads((schema.metadata or {})[PART]))
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise VirtueError(f"{path} is damaged ({error}): delete it, and it is encoded again") from error
        if not schema.equals(self.schema):
            raise VirtueError(f"{path} has other columns than this source's rows: give another --out")
        return part

    def write(self, number: int, part: PartFacts, rows: Sequence[EncodedRow]) -> None:
        """Commit a part, whole or not at all."""
        table = to_table(rows, self.schema)
        table = table.replace_schema_metadata({**(self.schema.metadata or {}), PART: json.dumps(asdict(part))})
        path = self.path(number)
        with naming(path), replace_whole(path, sync=True) as temporary:
            pq.write_table(table, temporary)


def begin_attempt(folder: Path, number: int, most: int) -> Path | None:
    """Make the file of an attempt at a part; None where `most` attempts have begun, and none of them has ended.

    Who made it removes it when the attempt ends; one of a killed process stays until the folder is held again.
    """
    for attempt in range(most):
        path = folder / f".part-{number:06d}.attempt.{attempt:012x}"
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path
    return None


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it against other processes; what a killed process was writing is removed.

    Raises VirtueError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VirtueError(f"another process encodes into {folder}: wait for it, or give another --out") from error
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


def check_about(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is encoded into a folder, or compare it with what is written there; returns what is written.

    about: values by name; those of "notes" are kept, not compared. Raises VirtueError for another value, and for a
    folder that holds other files.
    """
    path = folder / ABOUT
    if not path.is_file():
        if found := sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK):
            raise VirtueError(f"{folder} holds {found[0]}, and no {ABOUT}: give an empty or a new folder as --out")
        with replace_whole(path, sync=True) as temporary:
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return dict(about)
    try:
        found_about = read_json(path)
    except ValueError as error:
        raise VirtueError(f"{path} is damaged ({error}): give another --out") from error
    for name in dict.fromkeys([*about, *found_about]):
        if name != "notes" and about.get(name) != found_about.get(name):
            raise VirtueError(
                f"{folder} holds an encoding of {describe(name, found_about)}, and this one is of"
                f" {describe(name, about)}: give another --out, or the same as before"
            )
    return found_about


def describe(name: str, about: Mapping[str, Any]) -> str:
    """Return a value with its name, in words; of a fingerprint or digest its first digits."""
    value = about.get(name)
    text = str(value)[:12] if name in ("fingerprint", "content") else json.dumps(value, ensure_ascii=False)
    notes = about.get("notes", {})
    where = {"fingerprint": notes.get("model"), "content": notes.get("source")}.get(name)
    title = {"fingerprint": "the model", "content": "the source"}.get(name, name.replace("_", " "))
    return f"{title} {where} ({text})" if where else f"{title} {text}"


def sync_lines(path: Path, line: str) -> None:
    """Append a line to a file, and wait until it is on the disk."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
