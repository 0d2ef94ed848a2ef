"""A full disk, or one that cannot be written, is one line on the command line, whatever writes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from virtue_pl.cli import main as program
from virtue_pl.cli.disk_errors import describe_disk_error
from virtue_pl.cli.main import main
from virtue_pl.data.io.atomic import write_json
from virtue_pl.engine.checkpoint_io import WholeCheckpointIO
from virtue_pl.evaluation.reports.report_files import write_text
from virtue_pl.evaluation.retrieval.embedding_store import EmbeddingStore
from virtue_pl.features.shard_file import FeatureFileWriter
from virtue_pl.types import DISK_ERRORS, VirtueError, replace_whole

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@pytest.mark.parametrize("number", sorted(DISK_ERRORS), ids=errno.errorcode.get)
def test_an_error_of_the_disk_is_one_line(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise OSError(number, os.strerror(number), "runs/mini/last.ckpt")

    monkeypatch.setattr(program, "run", fail)
    assert main(["fit"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("virtue-pl: runs/mini/last.ckpt could not be ") and told.count("\n") == 1
    assert os.strerror(number) in told


def test_a_thread_that_meets_a_full_disk_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def log(arguments: list[str]) -> int:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(program, "run", log)
    before = threading.excepthook
    assert main(["fit"]) == 0 and threading.excepthook is before
    told = capsys.readouterr().err
    assert told.startswith("virtue-pl: a file could not be written: No space left") and told.count("\n") == 1


def wrapped(number: int) -> Iterator[Exception]:
    """An error of the disk as libraries raise it: another one from it, while handling it, or with its text alone."""
    full = OSError(number, os.strerror(number), "x.bin")
    for other in (RuntimeError, VirtueError):
        try:
            raise other("unexpected pos 64 vs 0") from full
        except Exception as error:
            yield error
        try:
            try:
                raise full
            except OSError:
                raise other("unexpected pos 64 vs 0")  # noqa: B904
        except Exception as error:
            yield error
    yield RuntimeError(f"Caught OSError in DataLoader worker process 0.\nOSError: [Errno 7] {os.strerror(number)}")


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
def test_a_full_disk_is_found_behind_any_error(number: int) -> None:
    for error in wrapped(number):
        told = describe_disk_error(error)
        assert told is not None and os.strerror(number) in told


def test_other_errors_are_left_alone() -> None:
    assert describe_disk_error(VirtueError("batch_size is 0")) is None
    assert describe_disk_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    defect = KeyError("x")
    defect.__context__ = PermissionError(errno.EACCES, "Permission denied", "/proc/1")
    assert describe_disk_error(defect) is None


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Have the kernel refuse to let any file grow beyond `size`, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)


def write_features(path: Path) -> None:
    writer = FeatureFileWriter(path)
    try:
        writer.add("0a", {"vision/0": torch.ones(2**14)})
        writer.save({})
    finally:
        writer.close()


def write_part(path: Path) -> None:
    store = EmbeddingStore(path.parent, "0a")
    store.add(["a"], torch.ones(1, 2**14))
    store.flush()


def write_tensors(path: Path) -> None:
    with replace_whole(path) as temporary:
        save_file({"a": torch.ones(2**14)}, temporary)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: WholeCheckpointIO().save_checkpoint({"a": torch.ones(2**14)}, path),
    "features": write_features,
    "report": lambda path: write_text(path, "a" * 2**16),
    "json": lambda path: write_json(path, {"a": "a" * 2**16}),
    "store": write_part,
    "tensors": write_tensors,
}


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_that_meets_a_full_disk_leaves_what_was_there(tmp_path: Path, kind: str, size: int) -> None:
    path = tmp_path / "folder/file"
    path.parent.mkdir()
    path.write_bytes(b"before")
    with limited(size), pytest.raises(Exception) as caught:  # of any library
        WRITERS[kind](path)
    told = describe_disk_error(caught.value)
    assert told is not None and "File too large" in told and str(tmp_path) in told
    assert [found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()] == [b"before"]
    WRITERS[kind](path)
    assert all(found.stat().st_size > 2**15 for found in tmp_path.rglob("*") if found.is_file() and found != path)
