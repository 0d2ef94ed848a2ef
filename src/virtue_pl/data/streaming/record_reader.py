"""Records of training shards in any order, from a few tars that stay open."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.record_index import RecordIndex, read_members
from virtue_pl.data.shards.records import Record, no_features, read_record
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import DataError

MAX_OPEN = 32
"""Shards that stay open: more than a shuffle of images spans, as long as its shards hold a few dozen each."""


@dataclass(frozen=True)
class OpenShard:
    """A shard that is being read; `resources` closes it.

    Example:
        >>> reader.open_shard("shard-000000.tar").index.keys[0]  # doctest: +SKIP
        '000000000'
    """

    file: BinaryIO
    index: RecordIndex
    resources: ExitStack


class RecordReader:
    """The records of a folder by their number, each read alone.

    Args:
        folder: the shards. Each is compared with its manifest when it is opened, by its headers alone.
        log: receives the records that cannot be used.

    Example:
        >>> with RecordReader(folder, SkipLog(BadSampleLimits())) as reader:  # doctest: +SKIP
        ...     reader.read(shard=0, number=17).key
        'SCAR_mini/000000017 (stamps/17.jpg)'
    """

    def __init__(self, folder: ShardFolder, log: SkipLog) -> None:
        self.folder = folder
        self.log = log
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._indices: dict[str, RecordIndex] = {}
        self._checked: set[str] = set()

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every shard."""
        while self._open:
            self._open.popitem()[1].resources.close()

    def read(self, shard: int, number: int) -> Record | None:
        """Return record `number` of a shard; None for one that cannot be used, which is named and skipped.

        Raises VirtueError for a shard that cannot be read, or is not the one of its manifest.
        """
        folder, name = self.folder, self.folder.manifest.shards[shard].name
        opened = self.open_shard(name)
        members = read_members(opened.file, opened.index, number)
        try:
            record = read_record(members, folder.manifest.name, folder.manifest.task)
        except DataError as error:
            self.check_content(name)
            self.log.skip(error)
            return None
        opened.index.check_rows(folder, record, folder.shard(name).rows_per_image[number])
        stored = no_features if folder.features is None else partial(folder.features.read, name)
        return replace(record, stored=stored, resize_to_square=folder.resize_to_square)

    def open_shard(self, name: str) -> OpenShard:
        """Return a shard that is open, closing the one that was read longest ago where there are too many."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].resources.close()
        with ExitStack() as stack:
            path = stack.enter_context(self.folder.hold_file(name))
            file = stack.enter_context(open(path, "rb"))
            index = self._indices.get(name) or RecordIndex.build(self.folder, name, path)
            self._indices[name] = index
            self._open[name] = OpenShard(file, index, stack.pop_all())
        return self._open[name]

    def check_content(self, name: str) -> None:
        """Raise VirtueError where a shard with a record that cannot be used is not the one that was written."""
        if name not in self._checked:
            self._checked.add(name)
            with self.folder.hold_file(name) as path:
                self.folder.check_content(self.folder.shard(name), path)
