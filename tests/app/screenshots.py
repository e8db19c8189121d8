"""The pictures of docs/app.md: `python -m tests.app.screenshots`, where Chromium is installed."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from internvl import hub
from internvl.app.engine import Engine
from internvl.app.server import start
from tests import support
from tests.app.test_browser import CHROMIUM, DESKTOP, FLAGS, PHONE, Visit

OUT = support.ROOT / "docs" / "images"
MOST = 250_000  # bytes of a picture


def save(visit: Visit, name: str) -> None:
    """Save what the window shows; in 256 colours if it is too large otherwise."""
    visit.page.mouse.move(5, 5)
    visit.page.wait_for_timeout(800)  # scrolling and transitions
    picture = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
    file = OUT / f"app-{name}.png"
    picture.save(file, optimize=True)
    if file.stat().st_size > MOST:
        picture.quantize(256).save(file, optimize=True)
    assert file.stat().st_size <= MOST, f"{file} has {file.stat().st_size} bytes"


def main() -> None:
    """Make all of them."""
    server = start(Engine(hub.load()))
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        browser = running.new_context()
        wide = Path(folder) / "wide.png"
        Image.open(support.ROOT / "examples/six.jpg").resize((900, 300)).save(wide)

        empty = Visit(browser, server.url, PHONE, "light")
        empty.page.wait_for_timeout(500)
        save(empty, "phone-light")

        boxes = Visit(browser, server.url, DESKTOP, "light")
        boxes.page.get_by_role("button", name="Where is the purple cross?").click()
        expect(boxes.chat.locator(".bot-row img")).to_be_visible(timeout=60_000)
        boxes.idle()
        boxes.tab("Attention")
        boxes.page.locator("#words").get_by_text("purple", exact=True).click()
        expect(boxes.page.locator("#attention img")).to_be_visible(timeout=60_000)
        save(boxes, "desktop")

        turns = Visit(browser, server.url, DESKTOP, "dark")
        turns.ask("What color is the circle?", "circle.png")
        turns.ask("In which direction does it move?", "moving.mp4")
        turns.add(wide)
        turns.text.fill("How many objects are there in Image-2?")
        turns.page.wait_for_timeout(1500)
        save(turns, "desktop-dark")

        phone = Visit(browser, server.url, PHONE, "dark")
        phone.ask("Which image contains a green square?", "left.png", "right.jpg")
        save(phone, "phone-dark")
        phone.tab("Attention")
        phone.page.locator("#words label").first.click()
        expect(phone.page.locator("#attention img").first).to_be_visible(timeout=60_000)
        phone.page.locator("#words").scroll_into_view_if_needed()
        phone.page.locator("#panel").evaluate("e => e.scrollIntoView()")
        save(phone, "phone-attention")
        running.close()
    server.close()


if __name__ == "__main__":
    main()
