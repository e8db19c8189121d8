"""A small Hub: the part of its API that downloads use, served from a folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_) -> None:
        """Keep the output of the tests clean."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        download = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        described = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        if download:
            self._file(f"{download[1]}/{download[2]}", body=body)
        elif described and (self.server.root / described[1]).is_dir():
            content = self.server.describe(described[1], tree="/tree/" in (described[2] or ""))
            self._send(json.dumps(content).encode(), body=body)
        else:
            self._send(b'{"error": "not found"}', body=body, status=404)

    def _file(self, name: str, *, body: bool) -> None:
        file = self.server.root / name
        if not file.is_file():
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(b"", body=body, status=404, headers=missing)
            return
        content, status = file.read_bytes(), 200
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        whole = len(content)
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
        if body:
            self.server.fetched.append((name, len(content)))
        self._send(content, body=body, status=status, headers=headers)

    def _send(
        self, content: bytes, *, body: bool, status: int = 200, headers: dict | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


class HubServer(ThreadingHTTPServer):
    """Serves the repositories in a folder, owner/name each.

    Attributes:
        root: the folder.
        fetched: (owner/name/file, bytes) of every file, or part of one, that was sent.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.fetched: list[tuple[str, int]] = []

    @property
    def endpoint(self) -> str:
        """URL for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def describe(self, repository: str, *, tree: bool) -> dict | list:
        """What the API says of a repository, or of its files."""
        folder = self.root / repository
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if tree:
            return [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
        siblings = [{"rfilename": name} for name in names]
        return {"_id": "1", "id": repository, "sha": COMMIT, "siblings": siblings}

    def bytes_of(self, name: str) -> int:
        """Bytes that were sent of a file."""
        return sum(size for sent, size in self.fetched if sent == name)


@contextmanager
def serve(root: Path) -> Iterator[HubServer]:
    """Serve a folder until the block ends."""
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
