"""Digests of what a folder of shards is made from beside its table, so that a change of it is seen the next time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from virtue_pl.data.conversion.grouped_parquet import Group, grouped_rows

if TYPE_CHECKING:
    from virtue_pl.data.conversion.source_file import SourceFile

CONVERSION = 1
"""Number of the rules by which rows become records: raised where the same source gives other shards, it lets them be
written anew.
"""


def input_digests(file: SourceFile, seed: int) -> list[str]:
    """Return, for each group of rows, a digest of what it and those before are made from beside the table.

    That is the conversion's rules, the dataset's entry in our own tables, and the state of every image: one that was
    missing and has come, or was written anew, changes the digests from its group on.
    """
    there = file.columns()
    found = [name for name in file.image_columns if name in there]
    columns = list(dict.fromkeys([*found, *file.group_columns]))
    states: dict[str, str] = {}
    digest = hashlib.blake2b(f"{CONVERSION} {file.side_inputs}".encode(), digest_size=12).hexdigest()
    digests = []
    for group in grouped_rows(file.table, columns, file.group_columns, seed, key=file.record_key):
        for path in image_paths(group, found):
            if path not in states:
                states[path] = file.images.state(path)
            digest = hashlib.blake2b(f"{digest} {path} {states[path]}".encode(), digest_size=12).hexdigest()
        digests.append(digest)
    return digests


def image_paths(group: Group, columns: list[str]) -> dict[str, None]:
    """Return the paths of images that a group's rows name, each once, in order."""
    values = (row[name] for _, row in group for name in columns)
    return dict.fromkeys(
        path for value in values for path in ([value] if isinstance(value, str) else value or ()) if path
    )
