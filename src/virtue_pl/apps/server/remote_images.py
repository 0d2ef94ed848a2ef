"""Images of other hosts: only of those that are allowed, never of a private address, and by no way around it."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from virtue_pl.types import VirtueError
from virtue_pl.types.prompt_values import describe

MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}


class RemoteImages:
    """A reader of the images that URLs of allowed hosts name.

    A host's address is looked up once for each connection, checked, and connected to as it is, so that a second look-up
    cannot give another; redirects stay on their host.

    Args:
        hosts: names of hosts, without port.
        max_bytes: of one image.
        seconds: in which an image must have come.
        look_up: returns a host's addresses.

    Example:
        >>> RemoteImages(["example.org"]).fetch("https://example.com/a.png")
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: found a URL of the host 'example.com', whose images are not read: ...
    """

    def __init__(
        self,
        hosts: Sequence[str],
        max_bytes: int = 64 << 20,
        seconds: float = 10.0,
        look_up: Callable[[str, int], list[str]] | None = None,
    ) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.look_up = look_up or find_addresses

    def fetch(self, url: str) -> bytes:
        """Return what a URL holds. Raises VirtueError where it is not allowed, cannot be read, or is too large."""
        deadline = time.monotonic() + self.seconds
        first = self.check(url)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = self.read(url, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise VirtueError(f"the URL {describe(url)} cannot be read ({type(error).__name__})") from error
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
            if self.check(url) != first:
                raise VirtueError(f"the URL leads to another host ({describe(url)}), expected an image")
        raise VirtueError(f"the URL leads on more than {MAX_REDIRECTS} times, expected an image")

    def check(self, url: str) -> str:
        """Return a URL's host. Raises VirtueError where it is not allowed."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise VirtueError(f"found the URL {describe(url)}, which cannot be read ({error})") from error
        if parts.scheme not in PORTS or parts.username is not None or port not in (None, PORTS[parts.scheme]):
            raise VirtueError(f"found the URL {describe(url)}, expected https://HOST/PATH, without a port or a user")
        if host not in self.hosts:
            raise VirtueError(
                f"found a URL of the host {host!r}, whose images are not read: give the image itself, as a data URI, or"
                " allow the host with --allow-host"
            )
        if not url.isascii() or not url.isprintable() or " " in url:
            raise VirtueError(f"found the URL {describe(url)}, expected printable ASCII characters")
        return host

    def read(self, url: str, deadline: float) -> bytes | str:
        """Return what a URL holds, or where it leads to."""
        parts = urlsplit(url)
        host, port = str(parts.hostname).lower(), PORTS[parts.scheme]
        address = self.allowed_address(host, port)
        connection = PinnedConnection(host, port, address, parts.scheme == "https", self.remaining(deadline))
        try:
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return response.headers.get("Location") or "/"
            if response.status != 200:
                raise VirtueError(f"the URL {describe(url)} answers {response.status}, expected an image")
            return self.read_body(response, url, connection.sock, deadline)
        finally:
            connection.close()

    def read_body(self, response: http.client.HTTPResponse, url: str, link: Any, deadline: float) -> bytes:
        """Return the content of a reply. Raises VirtueError for more than `max_bytes`, TimeoutError when it is late."""
        found = bytearray()
        while block := response.read1(1 << 16):
            found += block
            if len(found) > self.max_bytes:
                raise VirtueError(f"the URL {describe(url)} holds more than {self.max_bytes:,} bytes")
            if link is not None:
                link.settimeout(self.remaining(deadline))
        return bytes(found)

    def allowed_address(self, host: str, port: int) -> str:
        """Return an address of a host. Raises VirtueError where one of them is not of the public network."""
        addresses = self.look_up(host, port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise VirtueError(f"the host {host!r} has an address that is not public, whose images are not read")
        return addresses[0]

    def remaining(self, deadline: float) -> float:
        """Return the seconds until the deadline. Raises TimeoutError behind it."""
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("it took too long")
        return seconds


class PinnedConnection(http.client.HTTPConnection):
    """A connection to one address of a host, whose certificate is still that of the host's name.

    Example:
        >>> PinnedConnection("example.org", 443, "93.184.215.14", secure=True, timeout=5.0).address
        '93.184.215.14'
    """

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self.address = address
        self.secure = secure

    def connect(self) -> None:
        """Connect to the address, not to what the name may mean by now."""
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def find_addresses(host: str, port: int) -> list[str]:
    """Return all addresses of a host."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Return whether an address is of the public network: not of this machine, a private network or a group.

    An IPv4 address inside an IPv6 one counts as what it is.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if inside is not None:
            found = inside
    return found.is_global and not found.is_multicast
