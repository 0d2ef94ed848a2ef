"""Parts of encoded rows as commits of a Lance table, which `lancedb` opens as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from virtue_pl.apps.encoding.parts import PartFacts, sync_lines
from virtue_pl.search import EncodedRow, to_table
from virtue_pl.types import VirtueError, replace_whole

TABLE = "rows"
JOURNAL = "_parts.jsonl"
"""File in the folder with a line for each part, which says how many rows the table has behind it."""


class LanceParts:
    """Parts as commits of the table `rows` of a LanceDB folder.

    A part's line is written before its commit; it counts once the table has as many rows as the line says. Rows stand
    in the order of the commits, which is that of the parts where one process encodes.

    Example:
        >>> parts = LanceParts(Path("encoded"), schema)  # doctest: +SKIP
        >>> parts.write(0, PartFacts(1, 1), [row])  # doctest: +SKIP
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        database = connect(folder)
        self.journal, self.schema = folder / JOURNAL, schema
        self.uri = str(folder / f"{TABLE}.lance")
        if TABLE in database.list_tables().tables:
            self.table = database.open_table(TABLE)
        else:
            self.table = database.create_table(TABLE, schema=schema)
        self.rows = self.table.count_rows()

    def written(self) -> dict[int, PartFacts]:
        """Return the parts that are there; lines of commits that never came are removed.

        Raises VirtueError where the table has other rows than they say.
        """
        try:
            text = self.journal.read_text(encoding="utf-8") if self.journal.is_file() else ""
            whole = text[: text.rfind("\n") + 1]  # a line that was cut off is of no commit
            lines = [json.loads(line) for line in whole.splitlines()]
            committed = [line for line in lines if line["total"] <= self.rows]
            parts = {int(line.get("part", number)): PartFacts.from_json(line) for number, line in enumerate(committed)}
        except (ValueError, KeyError, TypeError) as error:
            raise VirtueError(f"{self.journal} is damaged ({error}): give another --out") from error
        if (committed[-1]["total"] if committed else 0) != self.rows:
            raise VirtueError(
                f"{self.journal.parent}: the table has {self.rows:,} rows, of which {self.journal.name} does not say"
                " where they come from: give another --out"
            )
        if len(committed) < len(lines) or whole != text:
            with replace_whole(self.journal, sync=True) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in committed), encoding="utf-8")
        return parts

    def write(self, number: int, part: PartFacts, rows: Sequence[EncodedRow]) -> None:
        """Commit a part, whole or not at all."""
        self.log(number, part)
        if rows:
            self.table.add(to_table(rows, self.schema))

    def log(self, number: int, part: PartFacts) -> None:
        """Write a part's line, before its commit."""
        self.rows += part.rows
        sync_lines(self.journal, json.dumps({"part": number, **asdict(part), "total": self.rows}))

    def commit_fragments(self, number: int, part: PartFacts, fragments: Sequence[str]) -> None:
        """Commit a part whose rows `lance.fragment.write_fragments` has written; fragments: as JSON."""
        from lance import FragmentMetadata, LanceDataset, LanceOperation

        self.log(number, part)
        if fragments:
            operation = LanceOperation.Append([FragmentMetadata.from_json(fragment) for fragment in fragments])
            LanceDataset.commit(self.uri, operation, read_version=LanceDataset(self.uri).version)


def connect(folder: Path) -> Any:
    """Return the LanceDB of a folder. Raises VirtueError, which names the extra, where lancedb is not installed."""
    try:
        import lancedb
    except ImportError as error:
        raise VirtueError(
            "--format lance needs lancedb, which is not installed: `pip install 'virtue-pl[search]'`, or write parquet"
        ) from error
    return lancedb.connect(folder)
