"""The pictures of docs/images are those that docs/scripts/plots.py draws from the kept results."""

from __future__ import annotations

import importlib
import importlib.metadata
import re

import pytest
from PIL import Image

from tests.docs import scripts

plots = importlib.import_module(f"{scripts.PACKAGE}.plots")
PINNED = re.search(
    r"^matplotlib==(.+)$", (scripts.ROOT / "requirements" / "v5.txt").read_text(), re.MULTILINE
)[1]


@pytest.mark.parametrize("name", plots.PLOTS)
def test_kept_pictures_are_drawn_from_kept_results(name, tmp_path):
    if importlib.metadata.version("matplotlib") != PINNED:
        pytest.skip(f"the pictures are those of matplotlib {PINNED}")
    plots.PLOTS[name](tmp_path / "drawn.svg")
    kept = plots.IMAGES / f"{name}.svg"
    assert (tmp_path / "drawn.svg").read_bytes() == kept.read_bytes()
    with Image.open(kept.with_suffix(".png")) as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_page_shows_it_and_says_how_it_is_made(name):
    pages = [path.read_text("utf-8") for path in (scripts.ROOT / "docs").glob("*.md")]
    (page,) = [text for text in pages if f"images/{name}.svg)" in text]
    assert f"plots.py {name}" in page or "voting --draw" in page
