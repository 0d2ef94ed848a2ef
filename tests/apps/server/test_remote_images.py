"""Images of other hosts: what is not allowed is refused before anything is connected to."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from virtue_pl.apps.server import remote_images
from virtue_pl.apps.server.remote_images import RemoteImages, is_public
from virtue_pl.types import VirtueError

PRIVATE = (
    *("127.0.0.1", "10.0.0.1", "192.168.0.1", "172.16.5.4", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::", "::", "ff02::1"),
)


def test_addresses_of_the_public_network_alone():
    assert [address for address in PRIVATE if is_public(address)] == []
    assert all(map(is_public, ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8")))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://other.org/a.png", "the host 'other.org', whose images are not read"),
        ("https://example.org.evil.org/a", "the host 'example.org.evil.org'"),
        ("https://evil.org#@example.org/a", "the host 'evil.org'"),
        ("ftp://example.org/a", "expected https://HOST/PATH"),
        ("file:///etc/passwd", "expected https://HOST/PATH"),
        ("https://me@example.org/a", "without a port or a user"),
        ("https://example.org:22/a", "without a port or a user"),
        ("https://example.org:x/a", "which cannot be read"),
        ("https://[::1/a", "which cannot be read"),
        ("https://example.org/a b", "expected printable ASCII"),
        ("https://example.org/\u00e9", "expected printable ASCII"),
    ],
)
def test_urls_that_are_not_read(url, message):
    with pytest.raises(VirtueError, match=message):
        RemoteImages(["example.org"], look_up=lambda host, port: pytest.fail("looked up")).fetch(url)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], []])
def test_an_allowed_host_with_a_private_address_is_not_connected_to(addresses):
    with pytest.raises(VirtueError, match="has an address that is not public"):
        RemoteImages(["example.org"], look_up=lambda host, port: addresses).fetch("https://example.org/a.png")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        size, _, target = self.path.removeprefix("/").partition("?")
        self.send_response(302 if target else 404 if size == "missing" else 200)
        if target:
            self.send_header("Location", target)
        self.end_headers()
        if size.isdigit():
            self.wfile.write(f"{self.headers['Host']}".encode().ljust(int(size), b"."))

    def log_message(self, *arguments):
        pass


@pytest.fixture
def images(monkeypatch):
    """A reader of example.org, which is this machine here."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(remote_images, "is_public", lambda address: True)
    monkeypatch.setitem(remote_images.PORTS, "http", server.server_port)
    yield RemoteImages(["example.org"], max_bytes=1000, look_up=lambda host, port: ["127.0.0.1"])
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_allowed_is_read_at_the_address_that_was_checked(images):
    assert images.fetch("http://example.org/900").startswith(b"example.org")
    assert len(images.fetch("http://example.org/0?/900")) == 900


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("1001", "holds more than 1,000 bytes"),
        ("missing", "answers 404, expected an image"),
        ("0?http://127.0.0.1/10", "the host '127.0.0.1', whose images are not read"),
        ("0?http://other.org/10", "the host 'other.org', whose images are not read"),
        ("0?file:///etc/passwd", "expected https://HOST/PATH"),
        ("0?/0?/0?/0?/0?/10", "leads on more than 3 times|holds|cannot"),
    ],
)
def test_ways_around(images, path, message):
    if path.count("?") > 1:
        path = "loop?/loop?"
        images.read = lambda url, deadline: "/again"
    with pytest.raises(VirtueError, match=message):
        images.fetch(f"http://example.org/{path}")


def test_a_redirect_to_another_allowed_host_is_refused(images):
    images.hosts = frozenset({"example.org", "other.org"})
    with pytest.raises(VirtueError, match="leads to another host"):
        images.fetch("http://example.org/0?http://other.org/10")


def test_a_host_that_does_not_answer_in_time(images):
    images.seconds = 0.0
    with pytest.raises(VirtueError, match="cannot be read \\(TimeoutError\\)"):
        images.fetch("http://example.org/10")
