"""Review: in a terminal, on a page, and what a sample could do to either."""

from __future__ import annotations

import http.client
import json
import re
import threading
from urllib.parse import urlencode, urlsplit

import pytest

from internvl.filtering.decisions import DECISIONS, load_decisions, read_queue
from internvl.filtering.report import write_report
from internvl.filtering.review import Which, describe, review, waiting
from internvl.filtering.review_page import ReviewServer
from tests.filtering import runs

ATTACK = "loop </pre><script>alert(1)</script><img src=x onerror=alert(2)> \x1b[2J\x07 {0} %s"


@pytest.fixture
def folder(tmp_path):
    """The output of a run with a queue of 17."""
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    return config.folder


@pytest.fixture
def hostile(tmp_path):
    """The output of a run that flagged a sample that attacks who looks at it."""
    row = runs.official("<b>Q</b>?", ATTACK)
    inputs = [{"name": "a<i>", "annotation": "a.jsonl"}]
    (runs.write_lines(tmp_path / "a.jsonl", [row, b'{"<script>": ']),)
    config = runs.configure(tmp_path, inputs=inputs)
    runs.run(config)
    return config.folder


def type_in(folder, *typed, which=None):
    """Review with these lines typed; returns (decisions made, what was shown)."""
    lines, shown = iter(typed), []
    made = review(folder, which, ask=lambda question: next(lines), show=shown.append)
    assert next(lines, None) is None, "not all was asked for"
    return made, shown


def words(folder):
    return {key: each.decision for key, each in load_decisions(folder).items()}


# ---------------------------------------------------------------------- terminal
def test_decisions_are_written_as_they_are_made(folder):
    keys = [entry["key"] for entry in read_queue(folder)]
    made, shown = type_in(folder, "a", "reject", "s", "what?", "f", "r", "q")
    assert made == 3
    assert words(folder) == {keys[0]: "accept", keys[1]: "reject", keys[3]: "reject"}
    assert "1 of 17" in shown[0]
    assert any("none of accept, reject" in text for text in shown)


def test_review_goes_on_where_it_was_left(folder):
    keys = [entry["key"] for entry in read_queue(folder)]
    type_in(folder, "a", "a", "q")
    made, shown = type_in(folder, *"r" * 15)
    assert made == 15
    assert "of 15" in shown[0]
    assert [e["key"] for e in waiting(folder)] == []
    assert list(words(folder)) == keys


def test_undo_goes_back_and_asks_again(folder):
    keys = [entry["key"] for entry in read_queue(folder)]
    made, shown = type_in(folder, "u", "a", "s", "r", "u", "u", "r", "q")
    assert made == 1
    assert words(folder) == {keys[0]: "reject"}
    assert "there is nothing to undo" in shown


def test_part_of_the_queue(folder):
    which = Which(rules=("says_zero",), datasets=("pictures",))
    made, _ = type_in(folder, *"rrrr", which=which)
    assert made == 4
    assert list(words(folder)) == [f"pictures:{row}" for row in (15, 30, 45, 60)]


def test_line_that_a_crash_cut_off_spoils_no_other(folder, caplog):
    type_in(folder, "a", "r", "q")
    path = folder / DECISIONS
    path.write_bytes(path.read_bytes()[:-20])
    type_in(folder, "a", "q")
    assert list(words(folder).values()) == ["accept", "accept"]
    assert "is not JSON and is left out" in caplog.text


def test_decision_that_is_none_is_refused(folder):
    line = {"key": "a:1", "digest": "0", "decision": "maybe"}
    (folder / DECISIONS).write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="holds the decision 'maybe'"):
        load_decisions(folder)


def test_sample_cannot_steer_the_terminal(hostile):
    for entry in read_queue(hostile):
        assert "\x1b" not in describe(entry, "1 of 2")
        assert "\x07" not in describe(entry, "1 of 2")


def test_folder_without_a_queue(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no queue.jsonl"):
        list(waiting(tmp_path))


# ---------------------------------------------------------------------- page
@pytest.fixture
def serve():
    servers = []

    def start(folder, which=None):
        server = ReviewServer(folder, which)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, method="GET", path=None, form=None, **headers):
    """(status, headers, body) of a request, no redirect followed."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    body = urlencode(form) if form is not None else None
    connection.request(method, path or f"/?{address.query}", body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read().decode()


def press(server, word, key=None, token=None):
    """Press a button of the page that is shown."""
    shown = ask(server)[2]
    found = key or re.search(r'name="key" value="([^"]+)"', shown)[1]
    return ask(server, "POST", "/", {"key": found, "word": word, "token": token or server.token})


def test_buttons_decide_and_lead_on(folder, serve):
    server, keys = serve(folder), [entry["key"] for entry in read_queue(folder)]
    assert "0 of 17 decided" in ask(server)[2]
    status, headers, _ = press(server, "accept")
    assert status == 303
    assert keys[1] in ask(server, path=headers["Location"])[2]
    press(server, "reject")
    press(server, "reject")
    press(server, "undo")
    assert words(folder) == {keys[0]: "accept", keys[1]: "reject"}
    status, headers, _ = press(server, "skip")
    assert keys[3] in ask(server, path=headers["Location"])[2]
    assert words(folder) == {keys[0]: "accept", keys[1]: "reject"}
    for _ in range(15):
        press(server, "accept")
    assert "All is decided." in ask(server)[2]


@pytest.mark.parametrize("token", ["", "wrong", "\u20ac"])
def test_who_does_not_know_the_token_sees_and_does_nothing(folder, serve, token):
    server = serve(folder)
    status, _, body = ask(server, path="/?" + urlencode({"token": token}))
    assert (status, "text:10" in body) == (403, False)
    assert press(server, "accept", key="text:10", token=token or " ")[0] == 403
    assert words(folder) == {}


def test_other_host_names_are_refused(folder, serve):
    """A page elsewhere whose name was bound to 127.0.0.1 cannot read the queue."""
    server = serve(folder)
    assert ask(server, Host=f"evil.example:{server.server_port}")[0] == 403
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "form", "status"),
    [
        ("GET", "/etc/passwd?token={token}", None, 404),
        ("POST", "/", {"key": "text:1", "word": "accept", "token": "{token}"}, 400),
        ("POST", "/", {"key": "text:10", "word": "keep", "token": "{token}"}, 400),
        ("POST", "/", {"token": "{token}"}, 400),
        ("POST", "/", {"token": "{token}", "key": "x" * 5000}, 413),
        ("GET", "/?token={token}&from=-3", None, 200),
        ("GET", "/?token={token}&from=99999", None, 200),
    ],
)
def test_odd_requests(folder, serve, method, path, form, status):
    server = serve(folder)
    form = form and {name: value.format(token=server.token) for name, value in form.items()}
    assert ask(server, method, path.format(token=server.token), form)[0] == status
    assert words(folder) == {}


def test_server_is_for_this_machine_only(folder, serve):
    assert serve(folder).server_address[0] == "127.0.0.1"


def test_sample_cannot_act_on_the_page(hostile, serve):
    server = serve(hostile)
    _, headers, body = ask(server)
    assert "<script>alert" not in body
    assert "<img" not in body
    assert "&lt;script&gt;alert(1)" in body
    assert "a&lt;i&gt;:1" in body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.search(r"(?:src|href)=", body.replace("src=x onerror", "")) is None
    press(server, "accept")
    assert "&lt;script&gt;" in ask(server)[2]  # the row that cannot be read


# ---------------------------------------------------------------------- report
def test_report_shows_what_was_counted(folder):
    statistics = json.loads((folder / "statistics.json").read_text())
    page = write_report(folder).read_text()
    assert "120 samples read = 103 kept + 0 removed + 17 queued" in page
    for name, rule in statistics["rules"].items():
        assert f"<h2>{name}</h2><p>{rule['flagged']:,} flagged" in page
        assert sum(rule["histogram"]["counts"]) == rule["flagged"]
        titles = re.findall(rf"<h2>{name}</h2>.*?</svg>", page)[0]
        drawn = [int(count) for count in re.findall(r"<title>(\d+)</title>", titles)]
        assert sum(drawn) == rule["flagged"]
    assert "<mark>loop</mark>" in page


def test_sample_cannot_act_in_the_report(hostile):
    page = (hostile / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert re.search(r"(?:src|href)=(?!x )", page) is None


def test_examples_are_a_few_of_each_rule_and_the_same_each_time(tmp_path):
    config = runs.small_corpus(tmp_path)
    runs.run(config)
    first = json.loads((config.folder / "statistics.json").read_text())
    shown = {name: len(rule["examples"]) for name, rule in first["rules"].items()}
    assert shown == {"bad_row": 1, "says_loop": 5, "says_zero": 5}
    runs.run(config)
    assert json.loads((config.folder / "statistics.json").read_text()) == first
