"""Copies of shards from servers that stall, trickle, break off and change: whole, or one line that says why not."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.shard_server import Server, serve
from virtue_pl.data.io import remote, transfer
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.io.remote import AbsentFile, RemoteFolder, check_file_name
from virtue_pl.types import VirtueError

CONTENT = bytes(range(256)) * 2**14  # longer than what a client buffers, and loses where a transfer breaks off
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = "shard-000000.tar"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "TAKEN_WAIT", 0.001)
    monkeypatch.setattr(transfer, "SILENCE", 0.8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / NAME).write_bytes(CONTENT)
    with serve(tmp_path) as found:
        yield found


def fetch(server: Server, tmp_path: Path, **options: Any) -> Path:
    folder = RemoteFolder(f"{server.url}/set", CacheOptions(str(tmp_path / "cache")))
    return folder.fetch(NAME, **{"size": len(CONTENT), "sha256": SUM, **options})


NEW, ON = False, True  # asked for from the beginning, or for the rest
STORIES: dict[str, tuple[list[str], list[bool]]] = {
    "sound": ([], [NEW]),
    "slow": (["trickle"], [NEW]),
    "stalls": (["stall"], [NEW, ON]),
    "stalls before the reply": (["stall before the reply"], [NEW, NEW]),
    "breaks off": (["break"], [NEW, ON]),
    "breaks off without saying how long it is": (["break without length"], [NEW, ON]),
    "is overloaded": (["503", "503", "429", "500"], [NEW] * 5),
    "is overloaded in the middle": (["break", "503", "502"], [NEW, ON, ON, ON]),
    "knows no Range": (["break", "whole"], [NEW, ON]),
    "has other bytes": (["other"], [NEW, NEW]),
    "has changed in the middle": (["break", "other"], [NEW, ON, NEW]),
    "is longer": (["longer"], [NEW, NEW]),
    "goes on elsewhere": (["break", "elsewhere"], [NEW, ON, NEW]),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_file_is_whole_whatever_the_server_does(server: Server, tmp_path: Path, story: str) -> None:
    faults, asked = STORIES[story]
    server.faults[NAME] = list(faults)
    path = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert story == "slow" or asked_on(server) == asked
    assert [other.name for other in path.parent.iterdir()] == [NAME]
    before = len(server.asked)
    assert fetch(server, tmp_path) == path and len(server.asked) == before


def asked_on(server: Server) -> list[bool]:
    """Return of each request for the file whether it went on."""
    return [asked is not None for asked in server.ranges(NAME)]


def test_every_piece_brings_a_broken_transfer_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    server.faults[NAME] = ["break after a million"] * 3  # more than the attempts without a byte
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    starts = [int(str(asked)[6:-1]) for asked in server.ranges(NAME)[1:]]
    assert starts == sorted(set(starts)) and len(starts) == 3


@pytest.mark.parametrize("fault", ["503", "stall before the reply", "other", "longer"])
def test_a_server_that_never_gives_the_file_is_one_line(
    server: Server, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    server.faults[NAME] = [fault] * 3
    with pytest.raises(VirtueError, match=rf"^train: http://.*/{NAME} could not be read, in 3 attempts") as caught:
        fetch(server, tmp_path)
    told = {
        "503": "the server answers 503 Service Unavailable",
        "stall before the reply": "nothing came for 0.8 s",
        "other": "4,194,304 bytes of another content than the manifest says",
        "longer": "the file has 4,194,404 bytes, expected 4,194,304",
    }
    assert told[fault] in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.ranges(NAME)) == 3
    assert not list((tmp_path / "cache").rglob("*.*"))


@pytest.mark.parametrize("status", ["401", "403", "410", "404"])
def test_what_a_server_does_not_give_is_not_asked_for_again(server: Server, tmp_path: Path, status: str) -> None:
    server.faults[NAME] = [status] * 9
    with pytest.raises(AbsentFile, match=rf"{NAME} is not (given \(the server answers {status}|there)"):
        fetch(server, tmp_path)
    assert len(server.ranges(NAME)) == 1


def test_it_is_said_what_is_waited_for(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FIRST_NOTICE", 0.02)
    server.faults[NAME] = ["stall", "trickle"]
    with caplog.at_level(logging.WARNING):
        fetch(server, tmp_path)
    waiting = [message for message in caplog.messages if message.startswith(f"waiting for {server.url}/set/{NAME}: ")]
    assert any(" of 4,194,304 bytes after " in message for message in waiting)
    assert any("nothing came for 0.8 s; attempt 2 of 7 in 0.001 s" in message for message in waiting)
    assert len(waiting) > 2


def test_a_later_process_goes_on_with_what_a_killed_one_has(server: Server, tmp_path: Path) -> None:
    server.faults[NAME] = ["stall"]
    read = transfer.Transfer._count

    def count(self: transfer.Transfer, chunk: bytes) -> None:
        read(self, chunk)
        if self.done >= len(CONTENT) // 2:
            self._target.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        transfer.Transfer._count = count  # type: ignore[method-assign]
        fetch(server, tmp_path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert asked_on(server) == [NEW, ON]


def in_processes(count: int, work: Callable[[], object]) -> list[int]:
    """Run the same in several processes at once; return their exit codes."""
    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_processes_that_want_the_same_file_copy_it_once(server: Server, tmp_path: Path) -> None:
    server.faults[NAME] = ["trickle"]
    folder = RemoteFolder(f"{server.url}/set", CacheOptions(str(tmp_path / "cache")))

    def read() -> None:
        with folder.hold_file(NAME, len(CONTENT), SUM) as path:
            assert path.read_bytes() == CONTENT

    assert in_processes(4, read) == [0] * 4
    assert server.ranges(NAME) == [None]
    assert [path.name for path in folder.path.iterdir()] == [NAME]


def test_a_full_disk_is_no_fault_of_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: transfer.Transfer, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "_count", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(server, tmp_path)
    assert Path(str(caught.value.filename)).name == NAME and len(server.ranges(NAME)) == 1


OUTSIDE = (
    "../x.tar",
    "/x.tar",
    "a/x.tar",
    "a/../x.tar",
    "x.tar/",
    "./x.tar",
    "..",
    ".",
    "",
    "x\0.tar",
    "x\n.tar",
    7,
    None,
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_lies_outside_its_folder(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a name without folders"):
        check_file_name(name)
