"""URLs: only http(s), only public addresses, also after redirects, limited in size and time."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.preprocessor.helpers import encoded, fetching, image_processor, picture, video_processing

BODY = encoded(picture(20, 12))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves an image, and misbehaves on demand."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        action = self.path.strip("/").partition("?")[0]
        if action == "image":
            self.reply(BODY)
        elif action == "missing":
            self.send_error(404)
        elif action == "loop":
            self.redirect("/loop")
        elif action == "short":
            self.reply(BODY[:50], declared=len(BODY))
        elif action == "unsized":
            self.reply(b"x" * 5000, declared=None)
        elif action == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:  # to/<url>
            self.redirect(self.path.partition("to/")[2])

    def reply(self, body: bytes, declared: int | None = -1) -> None:
        self.send_response(200)
        if declared is not None:
            self.send_header("Content-Length", str(len(body) if declared < 0 else declared))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # a client that hangs up is part of the tests
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def local(address: str) -> bool:
    """Stands for "public" where the test server is to be reached."""
    return address == "127.0.0.1"


def test_an_allowed_address_is_fetched(server):
    assert fetching.fetch_url(f"{server}/image", allowed=local) == BODY
    assert fetching.fetch_url(f"{server}/to/{server}/image", allowed=local) == BODY
    assert len(fetching.fetch_url(f"{server}/unsized", allowed=local)) == 5000


def test_this_machine_is_refused_without_a_connection(server):
    before = len(Handler.requests)
    port = server.rpartition(":")[2]
    for host in (
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ):
        with pytest.raises(ValueError, match=r"not a public address|could not be fetched"):
            fetching.fetch_url(f"http://{host}:{port}/image", timeout=5)
    with pytest.raises(ValueError, match="not a public address"):
        image_processor()(f"{server}/image", allow_urls=True)
    with pytest.raises(ValueError, match="not a public address"):
        video_processing.InternVLChatVideoProcessor()(f"{server}/image", allow_urls=True)
    assert len(Handler.requests) == before


def test_redirects_are_checked_like_the_first_address(server):
    port = server.rpartition(":")[2]
    with pytest.raises(ValueError, match=r"127\.0\.0\.2, which is not a public address"):
        fetching.fetch_url(f"{server}/to/http://127.0.0.2:{port}/image", allowed=local)
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match=r"only http and https|not allowed"):
            fetching.fetch_url(f"{server}/to/{target}", allowed=local)
    with pytest.raises(ValueError, match="could not be fetched"):
        fetching.fetch_url(f"{server}/loop", allowed=local)


def test_size_is_limited_whether_declared_or_not(server):
    for path in ("image", "unsized"):
        with pytest.raises(ValueError, match="larger than 100 bytes"):
            fetching.fetch_url(f"{server}/{path}", max_bytes=100, allowed=local)


def test_time_is_limited_also_when_the_body_trickles(server):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"took longer than 0\.4 s"):
        fetching.fetch_url(f"{server}/slow", timeout=0.4, allowed=local)
    assert time.monotonic() - start < 4  # the server would take five seconds


def test_time_is_limited_for_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(ValueError, match="took longer than"):
            fetching.fetch_url(url, timeout=0.3, allowed=local)


def test_http_errors_and_short_bodies_are_errors(server):
    with pytest.raises(ValueError, match="Not Found"):
        fetching.fetch_url(f"{server}/missing", allowed=local)
    with pytest.raises(ValueError, match="could not be fetched"):
        fetching.fetch_url(f"{server}/short", allowed=local)


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "file:///etc/hostname", "gopher://x", "/etc/hostname", ""]
)
def test_only_http(url):
    with pytest.raises(ValueError, match="not an http or https URL"):
        fetching.fetch_url(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::",
        "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses(address):
    assert not fetching.is_public_address(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert fetching.is_public_address(address)


def test_data_urls():
    assert fetching.decode_data_url("data:,a%20b") == b"a b"
    assert fetching.decode_data_url("data:text/plain;base64,aGVsbG8=") == b"hello"
    assert fetching.decode_data_url("DATA:;base64,aGVs\nbG8") == b"hello"
    assert fetching.decode_base64("-_-_") == fetching.decode_base64("+/+/")
    with pytest.raises(ValueError, match="no comma"):
        fetching.decode_data_url("data:image/png;base64")
    with pytest.raises(ValueError, match="not valid base64"):
        fetching.decode_base64("a!b")


def test_a_fetched_image_is_an_image(server, monkeypatch):
    monkeypatch.setitem(fetching.fetch_url.__kwdefaults__, "allowed", local)
    processor = image_processor()
    fetched = processor(f"{server}/image", allow_urls=True)["pixel_values"]
    assert np.array_equal(fetched, processor(BODY)["pixel_values"])
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        processor(f"{server}/image", allow_urls=True, url_max_bytes=10)
