"""One line for a disk that is full or cannot be read or written, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from virtue_pl.types import WHILE_WRITING, is_disk_error

FULL = {
    errno.ENOSPC: r"No space left on device|StorageFull",
    errno.EDQUOT: r"Disk quota exceeded|QuotaExceeded",
    errno.EFBIG: r"File too large|FileTooLarge",
    errno.EROFS: r"Read-only file system|ReadOnlyFilesystem",
}
"""Errors of writing, with what libraries say of them that raise another error than OSError."""
FREE = (
    "free some there, then run the same command again: what was written whole is kept (`fit` goes on by `--ckpt_path"
    " last`)"
)
PERMIT = "change its permissions, or name another folder"
MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FREE),
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), then run the same command again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), PERMIT),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY), "name another one"),
}


def describe_disk_error(error: BaseException) -> str | None:
    """Return one line on the error of a disk behind an error; None where there is none.

    The file's name is among it where it is known.
    """
    for cause in chain_of(error):
        named = is_disk_error(cause) and getattr(cause, "filename", None) is not None
        if isinstance(cause, OSError) and (cause.errno in FULL or (named and cause is error)):
            return explain(cause.errno or errno.EIO, cause.filename2 or cause.filename or name_in_notes(error))
    for cause in chain_of(error):
        for number, pattern in FULL.items():
            if re.search(pattern, str(cause)):
                return explain(number, name_in_notes(error))
    return None


def name_in_notes(error: BaseException) -> str | None:
    """Return the file that notes of an error, or of one behind it, say was being written; None where none do."""
    notes = [note for cause in chain_of(error) for note in getattr(cause, "__notes__", ())]
    return next((note.removeprefix(WHILE_WRITING) for note in notes if note.startswith(WHILE_WRITING)), None)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from or while handling, what that was, and so on."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def explain(number: int, path: object) -> str:
    """Return what could not be done, why, and what to do."""
    mend = MENDS.get(number, "mend the disk, then run the same command again")
    if number in FULL:
        return f"{path or 'a file'} could not be written: {os.strerror(number)}: {mend}"
    return f"{path} could not be read or written: {os.strerror(number)}: {mend}"
