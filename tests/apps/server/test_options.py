"""Limits, keys and hosts."""

from __future__ import annotations

import pytest

from virtue_pl.apps.server.options import Limits, ServerOptions, names_loopback
from virtue_pl.types import VirtueError

KEY = "0123456789abcdef"


def test_other_machines_need_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(VirtueError, match="without a key: give --api-key-file, or set VIRTUE_API_KEY"):
            ServerOptions(host=host)
        assert ServerOptions(host=host, keys=(KEY,)).find_key(KEY.encode()) == 0
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert ServerOptions(host=host).keys == ()


def test_keys_are_compared_as_a_whole():
    options = ServerOptions(keys=(KEY, KEY[::-1]))
    assert options.find_key(KEY[::-1].encode()) == 1
    for wrong in (b"", KEY[:-1].encode(), (KEY + "0").encode(), KEY.upper().encode(), b"\xff" * 16):
        assert options.find_key(wrong) is None


@pytest.mark.parametrize("key", ["short", "0123456789 abcdef", "0123456789abcdef\u00e9", "0123456789abcde\n"])
def test_weak_and_unsendable_keys_are_refused(key):
    with pytest.raises(VirtueError, match="expected at least 16, printable"):
        ServerOptions(keys=(key,))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"queued_rows": 0}, "queued_rows is 0, expected at least 1"),
        ({"wait_seconds": -1}, "wait_seconds is -1, expected at least 0"),
        ({"queued_rows": 8, "request_rows": 9}, "request_rows is 9, expected at most queued_rows = 8"),
    ],
)
def test_impossible_limits(limits, message):
    with pytest.raises(VirtueError, match=message):
        Limits(**limits)


def test_the_host_that_a_request_names():
    assert all(map(names_loopback, ("localhost:80", "127.0.0.1", "[::1]:8000", "[::1]")))
    assert not any(map(names_loopback, ("evil.org", "", "localhost.evil.org:80", "10.0.0.1")))
    assert names_loopback("box:8000", ("box",))
