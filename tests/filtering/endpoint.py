"""A real OpenAI-compatible server on this machine, that does what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What the server sends; `drop` ends the connection in its place."""

    content: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False

    def body(self) -> bytes:
        if self.status != 200 or self.content is None:
            return b'{"error": {"message": "not now"}}'
        choice = {"index": 0, "message": {"role": "assistant", "content": self.content}}
        usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


Answer = Callable[[Mapping[str, Any], int], Response]


class Endpoint(ThreadingHTTPServer):
    """Answers each request with what `answer(body, number)` returns, number from 0."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[Mapping[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no failure of a test."""

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer takes 40 ms
    wbufsize = -1
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            response = server.answer(body, number)
        finally:
            with server.lock:
                server.under_way -= 1
        if response.drop:
            self.close_connection = True
            self.connection.close()
            return
        data = response.body()
        self.send_response(response.status if self.path == "/v1/chat/completions" else 404)
        for name, value in {"Content-Length": str(len(data)), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def scored(score: int, reason: str = "So it is.") -> Response:
    return Response(json.dumps({"reason": reason, "score": score}))


def question_of(body: Mapping[str, Any]) -> str:
    """Which question a request asks: "domain", "quality" or "repetition"."""
    asked = body["messages"][1]["content"]
    if "Which domain" in asked:
        return "domain"
    return "quality" if "training data, from 0 to 10" in asked else "repetition"
