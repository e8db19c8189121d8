"""The live server and its clients: named endpoints, visitors apart, bounds, files that go."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

gradio_client = pytest.importorskip(
    "gradio_client", reason="the app needs Gradio: pip install 'internvl[app]'"
)
httpx = pytest.importorskip("httpx")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from PIL import Image  # noqa: E402

from internvl.app.bounds import MEBI  # noqa: E402
from internvl.app.headers import POLICY  # noqa: E402
from tests.app.conftest import BOX, EXAMPLES, SMALL, babble  # noqa: E402

SHORT = {"max_new_tokens": 40}


@pytest.fixture
def client(server):
    made = Client(server.url, verbose=False)
    yield made
    made.close()


def example(*names: str) -> list:
    return [handle_file(str(EXAMPLES / name)) for name in names]


def until(condition, seconds: float = 20) -> bool:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def uploaded(server) -> list:
    """Files in the folder of the server that are not its examples."""
    uploads = server.visitors.uploads
    found = []
    for top, _, names in os.walk(uploads.folder):  # unlike rglob it bears folders that go meanwhile
        for path in (Path(top, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path not in uploads._kept and path.stat().st_size:
                    found.append(path)
    return found


# ---------------------------------------------------------------------- endpoints
def test_the_documented_endpoints_are_there(client):
    from tests import support

    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    page = (support.ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    assert named
    for name, endpoint in named.items():
        assert f"`{name}`" in page, f"docs/app.md does not name {name}"
        for parameter in endpoint["parameters"]:
            assert f"`{parameter['parameter_name']}`" in page, (name, parameter["parameter_name"])


def test_a_dialogue(client):
    first = client.predict("What color is the object?", example("circle.png"), api_name="/ask")
    assert (first["answer"], first["finish"], first["tokens"]["tiles"]) == ("red", "stop", 1)
    job = client.submit(BOX, example("six.jpg"), SHORT, api_name="/ask")
    answer = job.result(timeout=60)
    growing = [output["raw"] for output in job.outputs()]
    assert len(set(growing)) > 3
    assert all(answer["raw"].startswith(text) for text in growing)
    assert answer["answer"].startswith("purple cross[[")
    (box,) = answer["boxes"]
    assert (box["label"], box["image"]) == ("purple cross", "six.jpg")
    assert [len(client.predict(api_name="/history")), answer["tokens"]["tiles"]] == [2, 2]
    assert client.predict(api_name="/undo") == {"question": BOX, "turns": 1}
    edited = client.predict(0, "What shape is it?", SHORT, api_name="/edit")
    assert (edited["answer"], edited["files"]) == ("circle", ["circle.png"])
    assert client.predict(SHORT, api_name="/retry")["answer"] == "circle"
    voted = client.predict("What color is it?", None, {"votes": 3, "seed": 1}, api_name="/ask")
    assert sum(voted["votes"]["counts"].values()) + voted["votes"]["without_answer"] == 3
    assert client.predict(api_name="/clear") == {"turns": 0}
    assert client.predict(api_name="/history") == []


def test_tiles_costs_words_and_attention(client, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(EXAMPLES / "six.jpg").resize((900, 300)).save(wide)
    both = [handle_file(str(wide)), *example("moving.mp4")]
    picture, facts = client.predict(both, {"num_frames": 2}, api_name="/tiles")
    assert Image.open(picture).size[0] > 300
    assert facts[0] == {
        "source": "wide.png",
        "kind": "image",
        "height": 300,
        "width": 900,
        "rows": 1,
        "cols": 3,
        "thumbnail": True,
        "tiles": 4,
        "tokens": 64,
    }
    assert facts[1] == {
        "source": "moving.mp4", "kind": "video", "frames": 2, "tiles": 2, "tokens": 32
    }  # fmt: skip
    cost = client.predict("How many?", both, {"num_frames": 2}, api_name="/account")
    assert (cost["visual_tokens"], cost["fits"], cost["context"]) == (96, True, 4096)
    client.predict("How many objects are there?", [both[0]], SHORT, api_name="/ask")
    words = client.predict(api_name="/words")
    assert words
    pictures, seen = client.predict(0, 1, "tiles", api_name="/attention")
    assert (seen["word"], pictures[0]["caption"]) == (words[0], "wide.png")
    (cells,) = seen["images"][0]["cells"]
    assert (len(cells), len(cells[0])) == (8, 24)
    assert 0 < sum(map(sum, cells)) <= seen["images"][0]["share"] <= 1
    # An image of one tile has no thumbnail: what was asked for is then the tile.
    client.predict("And this?", example("circle.png"), SHORT, api_name="/ask")
    _, seen = client.predict(0, 0, "thumbnail", api_name="/attention")
    assert [len(image["cells"][0][0]) for image in seen["images"]] == [24, 8]
    with pytest.raises(AppError, match="part is 'frame'; expected image, tiles, thumbnail"):
        client.predict(0, 0, "frame", api_name="/attention")
    assert client.predict(api_name="/model")["tokens_per_tile"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", None), "type a question"),
        (("What?", None, {"top_k": 3}), "Unknown options"),
        (("What?", None, {"votes": 99}), "Votes is 99; expected 1 to 16"),
        (("1 " * 4200, None), "of the model's context"),
        (("<image> What?", None), "more <image> tags than there are images"),
    ],
)
def test_what_cannot_be_asked_is_told(client, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, api_name="/ask")
    assert client.predict(api_name="/history") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.png", "broken.png is not a readable image"),
        ("list.mp4", "not a readable video"),
        ("text.pdf", "text.pdf is not a readable image"),
    ],
)
def test_files_that_cannot_be_used_are_told(client, files, name, message):
    with pytest.raises(AppError, match=message) as raised:
        client.predict("What?", [handle_file(str(files[name]))], api_name="/ask")
    assert "internvl-app-" not in str(raised.value)


# ---------------------------------------------------------------------- visitors
def test_two_clients_at_once_do_not_mix(server):
    anna, ben = Client(server.url, verbose=False), Client(server.url, verbose=False)
    script = [
        (anna, "circle.png", ["What color is the object?", "What shape is it?"]),
        (ben, "star.jpg", ["What color is the object?", "What shape is it?"]),
    ]
    answers: dict[str, list[str]] = {}

    def talk(client, name, questions):
        first = client.predict(questions[0], example(name), SHORT, api_name="/ask")
        second = client.predict(questions[1], None, SHORT, api_name="/ask")
        answers[name] = [first["answer"], second["answer"]]

    threads = [threading.Thread(target=talk, args=entry) for entry in script]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {"circle.png": ["red", "circle"], "star.jpg": ["yellow", "star"]}
    for client, name, _ in script:
        assert [turn["files"] for turn in client.predict(api_name="/history")] == [[name], []]
        client.close()


def test_a_client_that_leaves_takes_everything_along(server):
    client = Client(server.url, verbose=False)
    client.predict(BOX, example("six.jpg", "umbrella.png"), SHORT, api_name="/ask")
    client.predict(example("umbrella.png"), api_name="/tiles")
    client.predict(0, api_name="/attention")
    key = client.session_hash
    assert key in server.visitors
    assert len(uploaded(server)) >= 3  # an upload, pictures of tiles and attention
    client.close()
    assert until(lambda: key not in server.visitors)
    assert until(lambda: not uploaded(server)), uploaded(server)


def test_a_client_that_leaves_in_the_middle_frees_the_model(server):
    leaving = Client(server.url, verbose=False)
    with babble(server.visitors.engine) as talker:
        leaving.submit("Talk.", None, {"max_new_tokens": 2000}, api_name="/ask")
        assert talker.started.wait(30)
        leaving.close()
        assert until(lambda: leaving.session_hash not in server.visitors)
    said = talker.said
    client = Client(server.url, verbose=False)
    answer = client.predict("What color is it?", example("circle.png"), SHORT, api_name="/ask")
    client.close()
    assert answer["answer"] == "red"
    assert talker.said == said


def test_stop_keeps_what_was_said(client, server):
    step = threading.Semaphore(6)
    with babble(server.visitors.engine, step) as talker:
        job = client.submit("Talk.", None, {"max_new_tokens": 500}, api_name="/ask")
        assert talker.started.wait(30)
        assert until(lambda: any(output["answer"] for output in job.outputs()))
        threading.Timer(0.3, step.release, [500]).start()
        assert client.predict(api_name="/stop") == {"stopping": True}
        answer = job.result(timeout=30)
    assert (answer["finish"], answer["state"]) == ("stopped", "done")
    assert 0 < len(answer["answer"].split()) < 30


def test_a_full_line_turns_people_away(server):
    clients = [Client(server.url, verbose=False) for _ in range(SMALL.waiting + 2)]
    step = threading.Semaphore(2)
    brief = {"max_new_tokens": 8}
    with babble(server.visitors.engine, step) as talker:
        jobs = [clients[0].submit("Talk.", None, brief, api_name="/ask")]
        assert talker.started.wait(30)
        line = server.visitors.engine.line
        for count, client in enumerate(clients[1:-1], 2):
            jobs.append(client.submit("Talk.", None, brief, api_name="/ask"))
            assert until(lambda count=count: len(line.places) == count)
        with pytest.raises(AppError, match="busy: 2 questions in line already"):
            clients[-1].predict("Talk.", None, SHORT, api_name="/ask")
        # What needs no model is not held up, and who waits can stop.
        assert clients[-1].predict(api_name="/history") == []
        assert until(lambda: any(output["before"] == 2 for output in jobs[2].outputs()))
        clients[2].predict(api_name="/stop")
        assert jobs[2].result(timeout=30)["finish"] == "stopped"
        step.release(200)
        for job in jobs[:2]:
            assert job.result(timeout=60)["state"] == "done"
    assert line.places == []
    for client in clients:
        client.close()


# ---------------------------------------------------------------------- what is not offered
def post(server, route: str, body: dict) -> httpx.Response:
    return httpx.post(f"{server.url}gradio_api/{route}", json=body, timeout=30)


def refused(server, file: dict) -> str:
    """What the server says to a request that names a file by itself."""
    body = {"data": ["What?", [file], {}], "session_hash": "intruder"}
    function = next(f for f in server.blocks.fns.values() if f.api_name == "ask")
    joined = post(server, "queue/join", {**body, "fn_index": function._id})
    assert joined.status_code == 200
    with httpx.stream(
        "GET", f"{server.url}gradio_api/queue/data?session_hash=intruder", timeout=30
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    assert message["success"] is False
                    return str(message["output"])
    raise AssertionError("the server did not answer")


def test_files_of_the_server_cannot_be_asked_about(server, files):
    meta = {"_type": "gradio.FileData"}
    for path in (str(EXAMPLES / "six.jpg"), "/etc/hostname", str(files["broken.png"])):
        refused(server, {"path": path, "meta": meta})
        response = httpx.get(f"{server.url}gradio_api/file={path}", timeout=30)
        if str(EXAMPLES) not in path:  # the examples may be seen
            assert response.status_code == 403
    assert httpx.get(f"{server.url}gradio_api/file=/etc/hostname", timeout=30).status_code == 403


def function(server, name: str) -> int:
    """Number of a function of the page or of an endpoint."""
    return next(f._id for f in server.blocks.fns.values() if f.name == name)


def test_an_example_is_found_by_its_number_and_not_by_what_the_client_says(server):
    secret = Path(tempfile.gettempdir(), "secret-of-the-server.txt")
    secret.write_text("secret", encoding="utf-8")
    forged = {"text": "x", "files": [{"path": str(secret)}]}
    try:
        for index, status in ((0, 200), (99, 500), (-1, 500), ("x", 500), (None, 500)):
            # The empty path keeps Gradio's own check from looking further.
            data = {"path": "", "index": index, "value": forged}
            body = {"fn_index": function(server, "example"), "data": [], "event_data": data}
            response = post(server, "run/predict", {**body, "session_hash": "intruder"})
            assert response.status_code == status
            assert secret.stem not in response.text
            if status == 200:
                (box,) = response.json()["data"]
                assert "purple cross" in box["text"]
                assert [file["orig_name"] for file in box["files"]] == ["six.jpg"]
    finally:
        secret.unlink()
    assert not [path for path in uploaded(server) if path.name.startswith("secret")]


def test_urls_are_not_fetched(server, monkeypatch):
    import gradio.processing_utils
    import gradio.routes

    fetched = []
    for module, name in (
        (gradio.routes, "secure_url_stream_response"),
        (gradio.processing_utils, "async_ssrf_protected_download"),
    ):
        monkeypatch.setattr(module, name, lambda *a, **k: fetched.append(a))
    urls = ("http://127.0.0.1:9/x", "https://example.org/x.png")
    for route in [f"{way}{url}" for way in ("file=", "file/", "proxy=") for url in urls]:
        response = httpx.get(f"{server.url}gradio_api/{route}", timeout=30)
        assert (response.status_code, response.text) == (403, "URLs are not fetched here.")
    for url in urls:
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        # Gradio looks for files in whatever comes in, not only where files belong.
        for data in (["What?", [file], {}], ["What?", None, {"max_tiles": file}], [file, None, {}]):
            body = {"fn_index": function(server, "account"), "data": data}
            response = post(server, "run/predict", {**body, "session_hash": "intruder"})
            assert response.status_code == 500
            assert "URLs are not fetched" in response.text
        settings = [each.value for each in server.blocks.fns[function(server, "preview")].inputs]
        body = {"fn_index": function(server, "preview")}
        body["data"] = [{"text": "", "files": [file]}, *settings[1:]]
        response = post(server, "run/predict", {**body, "session_hash": "intruder"})
        assert "URLs are not fetched" in response.text
        assert "URLs are not fetched" in refused(server, file)
    assert fetched == []


def test_files_live_as_long_as_their_owner_and_examples_for_ever(server):
    uploads = server.visitors.uploads
    client = Client(server.url, verbose=False)
    client.predict("What is it?", example("relation.png"), SHORT, api_name="/ask")
    with (EXAMPLES / "star.jpg").open("rb") as file:  # sent, and never used
        post_ = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("s.jpg", file)})
    (unused,) = (Path(path) for path in post_.json())
    (used,) = (path for path in uploaded(server) if path.name == "relation.png")
    for path in uploads.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 10_000,) * 2)
    assert server.blocks.delete_cache is None  # which knows no owners
    uploads.sweep(7200)
    assert (used.exists(), unused.exists()) == (True, False)
    assert len(uploads._kept) >= 6
    for path in uploads._kept:
        response = httpx.get(f"{server.url}gradio_api/file={path}", timeout=30)
        assert response.status_code == 200
    client.close()
    assert until(lambda: not used.exists())


def test_the_files_of_a_client_are_bounded(server, monkeypatch):
    client = Client(server.url, verbose=False)
    client.predict(example("number.png"), api_name="/tiles")
    monkeypatch.setattr(server.visitors.uploads, "most_bytes", 10_000)
    with pytest.raises(AppError, match="Please start a new chat"):
        client.predict(example("cat.jpg"), api_name="/tiles")
    client.predict(api_name="/clear")
    monkeypatch.setattr(server.visitors.uploads, "most_bytes", MEBI)
    client.predict(example("cat.jpg"), api_name="/tiles")
    client.close()


def test_what_is_looked_at_is_tidied_too(server, monkeypatch):
    client = Client(server.url, verbose=False)
    tidied = []
    monkeypatch.setattr(server.visitors, "tidy", lambda: tidied.append(1))
    client.predict(example("digit.png"), api_name="/tiles")
    client.predict("?", example("digit.png"), api_name="/account")
    assert len(tidied) == 2
    index = function(server, "preview")
    settings = [each.value for each in server.blocks.fns[index].inputs[1:]]
    body = {"fn_index": index, "data": [{"text": "What?", "files": []}, *settings]}
    response = post(server, "run/predict", {**body, "session_hash": client.session_hash})
    assert (response.status_code, len(tidied)) == (200, 3)
    client.close()


def test_tidying_goes_on_after_an_error(server, monkeypatch):
    from internvl.app import server as module

    rounds = []

    def tidy() -> None:
        rounds.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(module, "_TIDY_SECONDS", 0.01)
    visitors = SimpleNamespace(tidy=tidy)
    running = module.Server("", SimpleNamespace(), visitors)
    assert until(lambda: len(rounds) > 2)
    running._over.set()


def test_too_large_an_upload_leaves_nothing(server, files):
    with files["large.png"].open("rb") as file:
        response = httpx.post(
            f"{server.url}gradio_api/upload", files={"files": ("large.png", file)}, timeout=30
        )
    assert response.status_code == 413
    assert "maximum allowed size" in response.text
    assert not [path for path in uploaded(server) if path.name.startswith("large")]
    assert sum(path.stat().st_size for path in uploaded(server)) < SMALL.file_bytes


def test_headers_keep_the_page_to_itself(server):
    response = httpx.get(server.url, timeout=30)
    assert response.status_code == 200
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "fonts.googleapis" not in response.text
    config = httpx.get(f"{server.url}config", timeout=30).json()
    assert config["analytics_enabled"] is False
