"""The page in a real browser: Debian's Chromium, driven by Playwright, against a live server."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl.answers import COT_OPEN
from tests.app.conftest import EXAMPLES, SMALL, babble

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser is driven by Playwright: pip install playwright"
)
expect = sync_api.expect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 30_000  # ms; a limit for what hangs, not a measure
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests, whose cache has the page after the first."""
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = running.new_context()
        context.set_default_timeout(PATIENCE)
        yield context
        running.close()


class Visit:
    """A window of the browser, which is a visitor of its own, and what one does there."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int], scheme: str) -> None:
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme=scheme)
        self.requests: list[str] = []
        self.responses: list[str] = []
        self.errors: list[str] = []
        self.page.on("response", lambda response: self.responses.append(response.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(url)
        self.chat, self.box = self.page.locator("#chat"), self.page.locator("#box")
        self.answers = self.chat.locator(".bot-row .message-content")
        self.text = self.box.locator("textarea")
        expect(self.text).to_be_visible(timeout=PATIENCE)

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def add(self, *files: Path | str) -> None:
        """Put files to the question."""
        paths = [str(EXAMPLES / file) for file in files]
        before = self.box.locator(".thumbnail-item").count()
        self.box.locator("input[type=file]").set_input_files(paths)
        expect(self.box.locator(".thumbnail-item")).to_have_count(
            before + len(paths), timeout=PATIENCE
        )

    def send(self, question: str) -> None:
        """Type a question and send it."""
        self.text.fill(question)
        self.box.get_by_test_id("submit-button").click()

    def ask(self, question: str, *files: Path | str) -> str:
        """Ask and wait for the whole answer."""
        if files:
            self.add(*files)
        count = self.answers.count()
        self.send(question)
        expect(self.answers).to_have_count(count + 1, timeout=PATIENCE)
        self.idle()
        return self.answers.last.inner_text().strip()

    def idle(self) -> None:
        """Wait until the answer has ended."""
        expect(self.box.get_by_test_id("submit-button")).to_be_visible(timeout=PATIENCE)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def toast(self, text: str) -> None:
        """Wait for a message, and put it away."""
        toast = self.page.locator(".toast-body").filter(has_text=text)
        expect(toast.first).to_be_visible(timeout=PATIENCE)
        toast.first.locator(".toast-close").click()

    def close(self) -> None:
        self.page.close()


@pytest.fixture
def visit(browser, server):
    """Makes visits, and ends them."""
    made: list[Visit] = []

    def go(size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Visit:
        made.append(Visit(browser, server.url, size, scheme))
        return made[-1]

    yield go
    for each in made:
        each.close()


# ---------------------------------------------------------------------- the page
def test_the_page_loads_from_here_only_and_everything_has_a_name(visit, server):
    here = visit()
    expect(here.page).to_have_title("InternVL: InternVL demo")
    expect(here.chat.locator(".example")).to_have_count(6)
    here.page.wait_for_timeout(500)  # for what would come late
    assert here.errors == []
    hosts = {re.sub(r"^\w+://([^/]+).*", r"\1", url) for url in here.requests
             if url.startswith("http")}  # fmt: skip
    assert hosts == {re.sub(r"^\w+://([^/]+).*", r"\1", server.url)}
    for name in ("Tiles", "Attention", "Settings", "Model"):
        here.tab(name)
        nameless = here.page.evaluate(NAMELESS)
        assert nameless == [], f"controls without a name on {name}"
    expect(here.page.locator("#model")).to_contain_text("Qwen2, 4 layers of 256")


# Controls that can be seen and that assistive technology could not name.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select')].filter(e => {
  if (!e.offsetParent) return false;
  const labels = e.labels ? [...e.labels].map(l => l.innerText).join('') : '';
  const by = (e.getAttribute('aria-labelledby') || '').split(' ')
    .map(id => document.getElementById(id)?.innerText || '').join('');
  return !(e.innerText || e.getAttribute('aria-label') || e.title || e.placeholder || labels || by)
    .trim();
}).map(e => e.outerHTML.slice(0, 120))"""


def test_upload_ask_and_a_second_image_in_the_second_turn(visit, tmp_path):
    here = visit()
    here.add("circle.png")
    # Tiles and costs are there before anything is asked.
    figure = here.page.locator("#tiles figure")
    expect(figure).to_have_count(1)
    expect(figure).to_contain_text("1 tile = 16 tokens")
    expect(here.page.locator("#meter")).to_contain_text("16 from images")
    assert here.ask("What color is the object?") == "red"
    expect(here.chat.locator(".user-row img")).to_have_count(1)
    assert here.ask("What color is this one?", "star.jpg") == "yellow"
    expect(here.page.locator("#meter")).to_contain_text("32 from images")
    wide = tmp_path / "wide.png"
    Image.open(EXAMPLES / "six.jpg").resize((900, 300)).save(wide)
    here.add(wide)
    expect(here.page.locator("#tiles h3")).to_have_text(
        [re.compile("Next question.*4 tiles = 64 tokens"), re.compile("In this chat")]
    )
    expect(here.page.get_by_alt_text("wide.png cut into 3 tiles")).to_be_visible()
    expect(here.page.get_by_alt_text("Thumbnail of wide.png")).to_be_visible()
    expect(here.page.locator("#meter")).to_contain_text("96 from images")
    assert here.errors == []


def test_an_example_draws_boxes(visit):
    here = visit()
    here.page.get_by_role("button", name="Where is the purple cross? Draw a box.").click()
    expect(here.answers.first).to_contain_text("purple cross", timeout=PATIENCE)
    picture = here.chat.locator(".bot-row img")
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 600
    expect(here.chat.locator(".bot-row code")).to_contain_text("[[")
    here.tab("Attention")
    here.page.locator("#words").get_by_text("purple", exact=True).click()
    shown = here.page.locator("#attention img")
    expect(shown).to_have_attribute("alt", "Attention of the word purple on six.jpg")
    before = shown.get_attribute("src")
    here.page.locator("#layer input").click()
    here.page.get_by_role("option", name="Layer 1").click()
    expect(shown).not_to_have_attribute("src", before, timeout=PATIENCE)
    expect(here.page.locator("#attention")).to_contain_text("% of the attention was on the image")


# ---------------------------------------------------------------------- while it answers
def test_an_answer_streams_and_stops(visit, server):
    here = visit()
    step = threading.Semaphore(3)
    with babble(server.visitors.engine, step):
        here.send("Talk.")
        expect(here.answers).to_have_count(1, timeout=PATIENCE)
        first = here.answers.first.inner_text()
        assert first
        step.release(4)
        grown = re.compile(re.escape(first.strip()) + r".+", re.DOTALL)
        expect(here.answers.first).to_have_text(grown, timeout=PATIENCE)
        here.box.locator(".stop-button").click()
        time.sleep(0.3)  # so that it arrives before the model goes on
        step.release(500)
        expect(here.chat).to_contain_text("Stopped.", timeout=PATIENCE)
    here.idle()
    assert here.ask("What color is it?", "circle.png") == "red"


def test_waiting_for_others_is_shown_and_can_be_stopped(visit, server):
    here, line = visit(), server.visitors.engine.line
    with line.turn(10):
        here.send("Is 2 a number?")
        expect(here.chat).to_contain_text("Waiting", timeout=PATIENCE)
        here.box.locator(".stop-button").click()
        here.idle()
        expect(here.text).to_have_value("Is 2 a number?")  # nothing was said: it comes back
        expect(here.answers).to_have_count(0)
        with contextlib.ExitStack() as others:
            for _ in range(SMALL.waiting):
                others.enter_context(line.place())
            here.box.get_by_test_id("submit-button").click()
            here.toast("The model is busy: 2 questions in line already")
            expect(here.text).to_have_value("Is 2 a number?")
    here.box.get_by_test_id("submit-button").click()
    expect(here.answers).to_have_count(1, timeout=PATIENCE)


# ---------------------------------------------------------------------- again and anew
def test_retry_edit_undo_and_a_new_chat(visit, server):
    here = visit()
    here.ask("What color is the circle?", "circle.png")
    here.ask("Where is the circle?")
    # Held up, so that it is seen to begin and idle() does not look before.
    with server.visitors.engine.turn():
        here.chat.get_by_label("Retry").last.click()
        expect(here.chat).to_contain_text("Waiting", timeout=PATIENCE)
        expect(here.box.locator(".stop-button")).to_be_visible(timeout=PATIENCE)
    here.idle()
    expect(here.answers).to_have_count(2, timeout=PATIENCE)
    here.chat.get_by_label("Edit").first.click()
    here.chat.locator("textarea").fill("What shape is it?")
    here.chat.get_by_label("Submit").click()
    expect(here.answers).to_have_text(["circle"], timeout=PATIENCE)
    here.idle()
    here.chat.get_by_label("Undo").last.click()
    expect(here.text).to_have_value("What shape is it?")
    expect(here.box.locator(".thumbnail-item")).to_have_count(1)
    expect(here.answers).to_have_count(0)
    here.ask("What color is the circle?")
    here.page.get_by_role("button", name="New chat").click()
    expect(here.chat.locator(".example")).to_have_count(6)
    expect(here.page.locator("#tiles")).to_contain_text("Add an image or a video")
    expect(here.text).to_have_value("")


def test_settings_reach_the_model(visit, server):
    here = visit()
    here.tab("Settings")
    here.page.get_by_label("number input for Votes").fill("3")
    here.page.get_by_label("number input for Votes").press("Tab")
    here.page.get_by_label("Reason step by step").check()
    here.page.get_by_label("number input for Longest answer, in tokens").fill("6")
    here.page.get_by_label("number input for Longest answer, in tokens").press("Tab")
    here.add("circle.png")
    here.page.get_by_label("System prompt").fill("Be brief.")
    here.send("Which color is it?")
    expect(here.chat).to_contain_text("of 3 votes", timeout=PATIENCE)
    here.idle()
    asked = [entry.visitor for entry in server.visitors._entries.values()]
    (mine,) = (each for each in asked if "Which color" in str(each.session.turns))
    assert mine.session.turns[0].question == f"Which color is it?\n{COT_OPEN}"
    assert mine.session.system_message == "Be brief."
    (exchange,) = mine.exchanges
    options, voted = exchange.options, exchange.voted
    assert (options.votes, options.cot, options.max_new_tokens) == (3, True, 6)
    tokenizer = mine.engine.loaded.tokenizer
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in voted.texts]
    assert len(lengths) == 3
    assert max(lengths) <= 6


# ---------------------------------------------------------------------- what goes wrong
def test_what_cannot_be_used_is_told_at_once(visit, files):
    here = visit()
    here.add(files["broken.png"])
    expect(here.page.locator("#meter")).to_contain_text("broken.png is not a readable image")
    here.send("What is it?")
    here.toast("broken.png is not a readable image")
    expect(here.text).to_have_value("What is it?")
    expect(here.answers).to_have_count(0)
    here.page.get_by_role("button", name="New chat").click()
    expect(here.box.locator(".thumbnail-item")).to_have_count(0)
    here.box.locator("input[type=file]").set_input_files([str(files["large.png"])])
    here.toast("large.png")
    here.send("  ")
    here.toast("Please type a question")
    here.text.fill("1 " * 4200)
    expect(here.page.locator("#meter")).to_contain_text("too many", timeout=PATIENCE)
    here.box.get_by_test_id("submit-button").click()
    here.toast("of the model's context")
    assert here.ask("What color is the circle?", "circle.png") == "red"  # and it goes on


def test_text_of_visitors_is_text(visit, tmp_path):
    here = visit()
    file = tmp_path / "<img src=x onerror=document.title='hit'>.png"
    file.write_bytes((EXAMPLES / "circle.png").read_bytes())
    here.ask("<img src=x onerror=document.title='hit'> ![x](https://example.org/x.png)", file)
    here.page.wait_for_timeout(300)
    expect(here.page).to_have_title("InternVL: InternVL demo")
    # The picture of another site that the text names: the browser is not allowed to ask for it.
    assert [error for error in here.errors if "Content Security Policy" in error]
    assert not [url for url in here.responses if "example.org" in url]


# ---------------------------------------------------------------------- who is there
def test_two_windows_do_not_mix_and_closing_one_removes_its_files(visit, server):
    uploads = server.visitors.uploads
    anna, ben = visit(), visit()
    assert anna.ask("What color is the object?", "circle.png") == "red"
    assert ben.ask("What color is the object?", "star.jpg") == "yellow"
    assert anna.ask("What shape is it?") == "circle"
    expect(ben.answers).to_have_count(1)
    expect(ben.page.locator("#tiles figure")).to_have_count(1)
    kept = set(uploads._owners)
    assert {path.name for path in kept} >= {"circle.png", "star.jpg"}
    count = len(server.visitors)
    anna.close()
    end = time.monotonic() + 30
    while len(server.visitors) == count and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(path.name == "circle.png" and path.exists() for path in kept)
    assert any(path.name == "star.jpg" and path.exists() for path in kept)


# ---------------------------------------------------------------------- sizes and colours
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sizes_and_colours(visit, scheme):
    here = visit(PHONE, scheme)
    here.ask("How many objects are there?", "six.jpg", "three.png")
    for width, height in (PHONE, DESKTOP):
        here.page.set_viewport_size({"width": width, "height": height})
        for name in ("Tiles", "Attention", "Settings", "Model"):
            here.tab(name)
            assert here.page.evaluate("document.documentElement.scrollWidth") <= width
            assert here.page.evaluate(OUTSIDE, width) == []
        expect(here.text).to_be_in_viewport()
    background, text = here.page.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.iv-header h1')).color]"
    )
    dark, light = (sum(map(int, re.findall(r"\d+", c)[:3])) / 765 for c in (background, text))
    if scheme == "light":
        dark, light = light, dark
    assert dark < 0.25
    assert light > 0.75


# Controls and pictures that reach beyond the right edge.
OUTSIDE = """width => [...document.querySelectorAll('button, input, textarea, img, figure, table')]
  .filter(e => e.offsetParent && e.getBoundingClientRect().right > width + 1)
  .map(e => e.outerHTML.slice(0, 100))"""
