"""The queue on a page: one sample at a time, with its evidence marked and two buttons.

The server answers on 127.0.0.1 only, and only to who knows the token of its address: other users
of the machine and pages of other sites (the host name is checked, too) can neither read the data
nor decide. Nothing is loaded from elsewhere, and all text of the data is escaped.
"""

from __future__ import annotations

import hmac
import html
import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from internvl.filtering.decisions import decide, is_open, load_decisions, read_queue
from internvl.filtering.excerpts import excerpt
from internvl.filtering.report import STYLE, marked
from internvl.filtering.review import Which

logger = logging.getLogger(__name__)

_LARGEST_FORM = 4096
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{done} of {total} decided</title>
<style nonce="{nonce}">
{style}
form {{ position: sticky; bottom: 0; padding: .8rem 0; background: Canvas; }}
button {{ font: inherit; padding: .4rem 1.2rem; margin-right: .6rem; }}
h2 {{ border: 0; padding: 0; }}
</style>
<p class="quiet">{done:,} of {total:,} decided</p>
{body}
<script nonce="{nonce}">
document.addEventListener("keydown", (event) => {{
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const button = document.querySelector(`button[accesskey="${{CSS.escape(event.key)}}"]`);
  if (button) button.click();
}});
</script>
</html>
"""
_FINISHED = """<h1>All is decided.</h1>
<p>Stop the server with Ctrl-C; then <code>internvl filter review OUT --apply</code> sorts the rows.
</p>"""
_BUTTONS = (
    ("a", "accept", "Accept (stays)"),
    ("r", "reject", "Reject (goes)"),
    ("s", "skip", "Skip"),
    ("u", "undo", "Undo the last"),
)


class ReviewServer(ThreadingHTTPServer):
    """Serves the queue of a run to this machine.

    Args:
        folder: output of a run.
        which: part of the queue.
        port: 0 for any that is free.

    Raises:
        FileNotFoundError: there is no queue.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, which: Which | None = None, *, port: int = 0) -> None:
        which = which or Which()
        self.folder = folder
        self.entries = [entry for entry in read_queue(folder) if which.takes(entry)]
        self.places = {entry["key"]: place for place, entry in enumerate(self.entries)}
        self.token = secrets.token_urlsafe(24)
        self.made: list[str] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    # ------------------------------------------------------------------ the queue
    def page(self, start: int, nonce: str) -> str:
        """The first entry from `start` on that nobody decided on; round again at the end.

        Args:
            start: place in the queue.
            nonce: by which the page's own style and script are known.
        """
        decisions, count = load_decisions(self.folder), len(self.entries)
        start = start if 0 <= start < count else 0
        order = [*range(start, count), *range(start)]
        place = next((i for i in order if is_open(self.entries[i], decisions)), None)
        done = sum(not is_open(entry, decisions) for entry in self.entries)
        body = _FINISHED if place is None else entry_as_html(self.entries[place], self.token)
        return _PAGE.format(style=STYLE, nonce=nonce, done=done, total=count, body=body)

    def answer(self, key: str, word: str) -> int:
        """Write down what was decided on an entry; returns where to go on.

        Raises:
            KeyError: no such entry, or no such word.
        """
        with self.lock:
            place = self.places[key]
            if word == "skip":
                return place + 1
            if word == "undo":
                if not self.made:
                    return place
                last = self.places[self.made.pop()]
                decide(self.folder, self.entries[last], "undo")
                return last
            if word not in ("accept", "reject"):
                raise KeyError(word)
            decide(self.folder, self.entries[place], "accept" if word == "accept" else "reject")
            self.made.append(key)
            return place + 1


def entry_as_html(entry: Mapping[str, Any], token: str) -> str:
    """An entry: its verdicts with the evidence of each, all turns, and the buttons."""
    turns = [turn["text"] for turn in entry["turns"]]
    parts = [
        f"<h1>{_text(entry['key'])}</h1>"
        f'<p class="quiet">{_text(entry["where"])}, {_text(entry["modality"])}</p>'
    ]
    for verdict in entry["verdicts"]:
        scores = f"{verdict['score']:g} against {verdict['threshold']:g}"
        parts.append(f"<h2>{_text(verdict['rule'])}: {scores}</h2><p>{_text(verdict['note'])}</p>")
        if cut := excerpt(turns, verdict["span"]):
            parts.append(marked(asdict(cut)))
    parts.append("<h2>The whole sample</h2>")
    parts += [f"<p>{t['role']}</p><pre>{_text(t['text'])}</pre>" for t in entry["turns"]]
    if "raw" in entry:
        parts.append(f"<pre>{_text(entry['raw'])}</pre>")
    if "media" in entry:
        parts.append(f'<p class="quiet">Media: {_text(entry["media"])}</p>')
    buttons = "".join(
        f'<button name="word" value="{word}" accesskey="{key}">{label} [{key}]</button>'
        for key, word, label in _BUTTONS
    )
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{_text(value)}">'
        for name, value in (("key", entry["key"]), ("token", token))
    )
    return "".join([*parts, f'<form method="post" action="/">{hidden}{buttons}</form>'])


def _text(value: Any) -> str:
    return html.escape(str(value))


class _Handler(BaseHTTPRequestHandler):
    """Answers a browser; the server knows the queue."""

    server: ReviewServer
    server_version, sys_version = "internvl", ""

    def do_GET(self) -> None:
        """Show an entry."""
        address = urlsplit(self.path)
        fields = parse_qs(address.query)
        if not self._allowed(fields):
            return
        if address.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is one page only, at /")
            return
        start = fields.get("from", ["0"])[0]
        nonce = secrets.token_urlsafe(16)
        page = self.server.page(int(start) if start.isdecimal() else 0, nonce)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
        self._send(
            HTTPStatus.OK,
            page.encode(errors="xmlcharrefreplace"),
            {"Content-Security-Policy": f"{policy}; form-action 'self'; frame-ancestors 'none'"},
        )

    def do_POST(self) -> None:
        """Write a decision down and go on to the next entry."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_FORM:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "expected a small form")
            return
        fields = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        if not self._allowed(fields):
            return
        try:
            place = self.server.answer(fields["key"][0], fields["word"][0])
        except KeyError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"{error} is not of this queue")
            return
        query = urlencode({"token": self.server.token, "from": place})
        self._send(HTTPStatus.SEE_OTHER, b"", {"Location": f"/?{query}"})

    def _allowed(self, fields: Mapping[str, list[str]]) -> bool:
        """Whether this is our page: the right token, and a name of this machine as host."""
        port = self.server.server_port
        host = self.headers.get("Host", "")
        token = fields.get("token", [""])[0]
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if known and host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "open the address that the command wrote, token and all")
        return False

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, f"<!doctype html><p>{_text(why)}</p>".encode(), {})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log without the address, which holds the token."""
        logger.debug("%s %s", self.command, args[1] if len(args) > 1 else "")
