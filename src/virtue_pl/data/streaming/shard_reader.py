"""Records of shards as they are read: every one that the manifest counts, or an error."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.record_count import RecordCount
from virtue_pl.data.shards.records import Record, no_features, read_record
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.types import DataError


def read_shards(shards: Iterable[Mapping[str, Any]], folder: ShardFolder, log: SkipLog) -> Iterator[Record]:
    """Yield every record of the shards (`{"url": path}`), in order.

    A record that cannot be used is named and skipped, if it was written so: the first one of a shard has its checksum
    compared. Raises VirtueError for a shard that cannot be read, or is not the one of its manifest.
    """
    for shard in shards:
        name = shard["url"].rpartition("/")[2]
        stored = no_features if folder.features is None else partial(folder.features.read, name)
        count, is_checked = RecordCount(folder, name), False
        with folder.hold_file(name) as path:
            for members in read_tar(str(path), count.fail):
                if count.is_beyond(members["__key__"]):
                    break
                try:
                    record = read_record(members, folder.manifest.name, folder.manifest.task)
                except DataError as error:
                    count.add(members["__key__"])
                    if not is_checked:
                        folder.check_content(folder.shard(name), path)
                    is_checked = True
                    log.skip(error)
                    continue
                count.add(members["__key__"], len(record.rows))
                yield replace(record, stored=stored, resize_to_square=folder.resize_to_square)
            count.check_complete()


def read_tar(path: str, fail: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """Yield the records of one tar, grouped by webdataset, up to where it is damaged, which `fail` is called with."""
    errors: list[Exception] = []

    def stop(error: Exception) -> bool:
        if not isinstance(error, tarfile.TarError | OSError | EOFError | ValueError):
            raise error
        errors.append(error)
        return False

    found = False
    with open(path, "rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": path, "stream": stream}], handler=stop)
        for members in wds.tariterators.group_by_keys(files, handler=stop):
            found = True
            yield members
    if errors:
        fail(f"damaged tar: {str(errors[0].args[0]).partition(' @ ')[0]}")
    elif not found:
        fail("the tar holds no record")
