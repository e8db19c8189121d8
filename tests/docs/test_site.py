"""The documentation site: built strictly, whole, and with nothing from another host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

from tests.docs import scripts

DOCS = scripts.ROOT / "docs"
# What a page loads by itself; `a` is a link, which a reader follows.
LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Ids, links and what is loaded, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.without_alt: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in LOADING and values.get(LOADING[tag]):
            self.loaded.append(values[LOADING[tag]])
        if tag == "img" and not values.get("alt"):
            self.without_alt.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once for all test processes."""
    for name in ("sphinx", "myst_parser", "furo", "latex2mathml", "griffe"):
        pytest.importorskip(name, reason=f"{name} is not installed: internvl[docs]")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out, log = folder / "site", folder / "site.json"
    with FileLock(folder / "site.lock"):
        if not log.exists():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
            result = subprocess.run(
                [*command, "-d", str(folder / "doctrees"), str(DOCS), str(out)],
                cwd=scripts.ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            log.write_text(json.dumps([result.returncode, result.stderr]))
    assert json.loads(log.read_text()) == [0, ""]
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_docs_is_on_the_site(pages, site):
    expected = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert expected <= {path.relative_to(site) for path in pages}


def test_every_link_leads_to_a_page_and_a_place_in_it(pages):
    def places(target):
        return pages[target].ids if target in pages else set()

    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.is_file() or (place and place not in places(target)):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages, site):
    far = re.compile(r"^(https?:)?//")
    assert [url for page in pages.values() for url in page.loaded if far.match(url)] == []
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        urls = re.findall(r"(?:url\(|@import\s*)['\"]?([^'\")]+)", text)
        assert [url for url in urls if far.match(url)] == [], style.name
    for script in site.rglob("*.js"):
        text = script.read_text("utf-8", errors="replace")
        assert not re.search(r"(fetch|import|importScripts)\(['\"]https?://", text), script.name


def test_pictures_have_words(pages):
    assert [(path.name, page.without_alt) for path, page in pages.items() if page.without_alt] == []


def test_equations_are_mathml(pages, site):
    text = (site / "architecture.html").read_text("utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 10
    assert "$$" not in text
    assert not any("mathjax" in url.lower() for page in pages.values() for url in page.loaded)


def test_code_is_that_of_the_source(site):
    """What a page quotes is what the file has: here the line that decides a tie of grids."""
    text = re.sub(r"<[^>]+>", "", (site / "architecture.html").read_text("utf-8"))
    line = "elif difference == smallest and width * height &gt; 0.5 * tile * tile * grid.tiles:"
    assert line in text
    source = (scripts.ROOT / "preprocessor" / "tiling.py").read_text("utf-8")
    assert line.replace("&gt;", ">") in source


def test_files_outside_of_docs_are_pages(site, pages):
    text = (site / "project" / "demo.html").read_text("utf-8")
    assert "How well" in text
    assert "license: mit" not in text
    links = pages[site / "training.html"].links
    assert "project/launch.html" in links
    assert "project/demo_data.html" in links
