"""Bytes from places that a message may name: data URLs, and http(s) URLs if the caller allows.

A URL in a prompt is somebody else's choice of what this machine connects to. So a fetch speaks only
http and https, connects only to public addresses (checked on the address it then connects to, for
every redirect, so that a name which resolves differently the second time gains nothing), uses no
proxy, and is limited in size and time.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_url(source: str) -> bool:
    """Whether a string is an http(s) URL."""
    return source[:8].lower().startswith(("http://", "https://"))


def is_data_url(source: str) -> bool:
    """Whether a string is a data URL."""
    return source[:5].lower() == "data:"


def decode_data_url(url: str) -> bytes:
    """Decode `data:[type][;base64],payload`.

    Raises:
        ValueError: the URL has no payload, or its base64 is broken.
    """
    head, comma, payload = url.partition(",")
    if not comma:
        raise ValueError(
            f"data URL {url[:40]!r}... has no comma; expected data:image/png;base64,<payload>."
        )
    if head.lower().endswith(";base64"):
        return decode_base64(urllib.parse.unquote(payload))
    return urllib.parse.unquote_to_bytes(payload)


def decode_base64(text: str) -> bytes:
    """Decode base64, white space ignored, the URL-safe alphabet accepted.

    Raises:
        ValueError: the text is not base64.
    """
    compact = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{text[:40]!r}... is not valid base64 ({error}).") from error


def is_public_address(address: str) -> bool:
    """Whether an IP address is on the public internet, also when it is wrapped in an IPv6 form."""
    ip: Any = ipaddress.ip_address(address.split("%")[0])
    if ip.version == 6:
        if ip in _NAT64:
            ip = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _Deadline:
    """A wall-clock limit that also ends a trickling read: it shuts the sockets down."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def remaining(self) -> float:
        return self.end - time.monotonic()

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection)

    def _shut_down(self) -> None:
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # already closed: nothing left to end
                continue

    def cancel(self) -> None:
        self._timer.cancel()


def _connect(
    host: str, port: int, deadline: _Deadline, allowed: Callable[[str], bool]
) -> socket.socket:
    """Resolve `host`, refuse it if one of its addresses is refused, connect to a checked one."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refused = sorted({str(entry[4][0]) for entry in found if not allowed(str(entry[4][0]))})
    if refused:
        raise ValueError(
            f"host {host!r} resolves to {', '.join(refused)}, which is not a public address; "
            "private, loopback and link-local addresses are never fetched."
        )
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        if deadline.remaining() <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(deadline.remaining())
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
            continue
        deadline.watch(connection)
        return connection
    raise failure or TimeoutError(f"no connection to {host!r} in time")


def _handlers(
    deadline: _Deadline, allowed: Callable[[str], bool]
) -> list[urllib.request.BaseHandler]:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = _connect(self.host, self.port, deadline, allowed)

    class SecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            plain = _connect(self.host, self.port, deadline, allowed)
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
            deadline.watch(self.sock)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(Connection, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(SecureConnection, request)

    class Redirect(urllib.request.HTTPRedirectHandler):
        max_redirections = MAX_REDIRECTS

        def redirect_request(self, request, stream, code, message, headers, url):
            if not is_url(url):
                raise ValueError(f"it redirects to {url[:80]!r}; only http and https are followed.")
            return super().redirect_request(request, stream, code, message, headers, url)

    return [
        Http(),
        Https(),
        Redirect(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ]


def fetch_url(
    url: str,
    *,
    max_bytes: int = 64 << 20,
    timeout: float = 20.0,
    allowed: Callable[[str], bool] = is_public_address,
) -> bytes:
    """Fetch an http(s) URL.

    Args:
        url: the URL.
        max_bytes: largest body accepted.
        timeout: seconds for everything after name resolution: connecting, redirects, reading.
        allowed: says for an IP address whether it may be connected to.

    Returns:
        The body.

    Raises:
        ValueError: not http(s), a refused address, too many redirects, an HTTP error, too large,
            too slow.
    """
    shown = url if len(url) <= 120 else url[:117] + "..."
    if not is_url(url):
        raise ValueError(f"{shown!r} is not an http or https URL.")
    deadline = _Deadline(timeout)
    opener = urllib.request.OpenerDirector()  # bare: no proxy, no ftp, no file handler
    for handler in _handlers(deadline, allowed):
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "internvl", "Accept": "*/*"})
        with opener.open(request, timeout=timeout) as response:
            body = _read(response, max_bytes, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # URLError and HTTPError are OSErrors.
        if deadline.remaining() <= 0:
            raise ValueError(
                f"{shown} took longer than {timeout:g} s; raise url_timeout to wait longer."
            ) from error
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{shown} could not be fetched: {reason}") from error
    finally:
        deadline.cancel()
    return body


def _read(response: Any, max_bytes: int, deadline: _Deadline) -> bytes:
    """Read a body within its limits."""
    declared = response.headers.get("Content-Length")
    too_large = f"it is larger than {max_bytes} bytes; raise url_max_bytes to accept it."
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise ValueError(too_large)
    body = bytearray()
    while True:
        if deadline.remaining() <= 0:
            raise TimeoutError
        chunk = response.read1(_CHUNK)
        if not chunk:
            break
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(too_large)
    if deadline.remaining() <= 0:  # a connection shut down at the deadline reads like a short body
        raise TimeoutError
    if declared is not None and declared.isdigit() and len(body) != int(declared):
        raise ValueError(f"it ended after {len(body)} of {declared} bytes.")
    return bytes(body)
