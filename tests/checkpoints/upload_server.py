"""A Hub on this machine that takes uploads, by the calls that huggingface_hub makes.

Small files come within the commit, large ones before it, each to an address of its own, as git-lfs
does. What arrived is in `files` once it is committed.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        self.server.requests.append(("POST", path, self.headers.get("Authorization")))
        answers = {
            r"/api/repos/create": self._create,
            r"/api/models/.+/branch/.+": lambda _: {},
            r"/api/validate-yaml": lambda _: {"errors": [], "warnings": []},
            r"/api/models/.+/preupload/.+": self._preupload,
            r"/.+\.git/info/lfs/objects/batch": self._batch,
            r"/api/models/.+/commit/(?P<branch>.+)": self._commit,
        }
        for pattern, answer in answers.items():
            if re.fullmatch(pattern, path):
                self._send(answer(body))
                return
        self._send({"error": "not found"}, status=404)

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(("PUT", oid, None))
        if self.server.broken_after is not None and self.server.puts >= self.server.broken_after:
            self._send({"error": "the connection is gone"}, status=400)
            return
        if hashlib.sha256(content).hexdigest() != oid:
            self._send({"error": "another content"}, status=422)
            return
        self.server.large[oid] = content
        self._send({})

    def log_message(self, *_) -> None:
        """Keep the output of the tests clean."""

    def _create(self, body: bytes) -> dict:
        self.server.created = json.loads(body)
        return {"url": f"{self.server.endpoint}/{self.server.repo}"}

    def _preupload(self, body: bytes) -> dict:
        files = json.loads(body)["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if self.server.is_large(file) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
        }

    def _batch(self, body: bytes) -> dict:
        objects = []
        for wanted in json.loads(body)["objects"]:
            known = wanted["oid"] in self.server.large
            upload = {"upload": {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}}
            objects.append({**wanted} if known else {**wanted, "actions": upload})
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body: bytes) -> dict:
        self.server.branch = unquote(self.path).rpartition("/commit/")[2].partition("?")[0]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.endpoint}/{self.server.repo}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}

    def _send(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class UploadServer(ThreadingHTTPServer):
    """Takes uploads into one repository.

    Attributes:
        repo: owner/name.
        requests: (method, path or oid, authorization) of each, in order.
        created: what was asked for when the repository was made.
        large: hash -> content of the large files that arrived.
        files: path -> content of what was committed.
        branch: that was committed to.
        broken_after: refuse large files after so many; None to take all.
    """

    daemon_threads = True

    def __init__(self, repo: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo = repo
        self.requests: list[tuple[str, str, str | None]] = []
        self.created: dict = {}
        self.large: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.branch = ""
        self.broken_after: int | None = None

    @property
    def endpoint(self) -> str:
        """URL of the Hub."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def puts(self) -> int:
        """How many large files were sent whole."""
        return len(self.large)

    def is_large(self, file: dict) -> bool:
        """As a new repository on the Hub decides."""
        patterns = ("*.safetensors", "*.model", "*.png", "*.npz", "tokenizer.json")
        name = file["path"].rpartition("/")[2]
        return file["size"] > 10 * 2**20 or any(fnmatch.fnmatch(name, p) for p in patterns)


@contextmanager
def serve(repo: str) -> Iterator[UploadServer]:
    """Take uploads until the block ends."""
    server = UploadServer(repo)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
