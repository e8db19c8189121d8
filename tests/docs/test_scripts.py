"""What the scripts of docs/scripts write: reference, command line, picture, links."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs import scripts


def script(name: str):
    return importlib.import_module(f"{scripts.PACKAGE}.{name}")


# ---------------------------------------------------------------------- reference
@pytest.fixture
def api(tmp_path, monkeypatch):
    pytest.importorskip("griffe", reason="griffelib is not installed: internvl[docs]")
    module = script("api_reference")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    module.load.cache_clear()
    (tmp_path / "shapes.py").write_text(
        '''
from dataclasses import dataclass, field
from os import path


def area(height: int, /, width: int = 2, *, unit: str = "px", **more: int) -> int:
    """Multiply `height` and width * <unit>.

    * one
    * two

    Args:
        height: rows, `a < b`.
        width: columns,
            in pixels.

    Returns:
        The area of $x$.

    Raises:
        ValueError: nothing there.
    """
    return height * width


@dataclass(frozen=True)
class Box:
    """A box.

    Attributes:
        left: its edge.
    """

    left: int
    tags: list = field(default_factory=list)

    def right(self) -> int:
        """Its other edge."""
        return self.left

    def bare(self) -> int:
        return 0


def silent():
    return 0
'''
    )
    yield module
    module.load.cache_clear()


def test_reference_of_a_function(api):
    text = api.expand("```{api} shapes\narea\n```")
    signature = "area(height: int, /, width: int = 2, *, unit: str = 'px', **more: int) -> int"
    assert f"```{{py:function}} {signature}" in text
    assert r"Multiply `height` and width * \<unit>." in text
    assert "* one\n* two" in text
    assert ":param height: rows, `a < b`.\n" in text
    assert ":param width: columns,\n    in pixels.\n" in text
    assert r":returns: The area of \$x\$." in text
    assert ":raises ValueError: nothing there." in text


def test_reference_of_a_class(api):
    text = api.expand("```{api} shapes\nBox\n```")
    assert "````{py:class} Box(left: int, tags: list = ...)" in text
    assert ":ivar left: its edge." in text
    assert "```{py:method} right() -> int" in text
    assert "bare" not in text
    assert "right" not in api.expand("```{api} shapes\nBox:\n```")
    assert "{py:method} Box.right()" in api.expand("```{api} shapes\nBox.right\n```")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("volume", "has no volume"), ("silent", "no docstring"), ("path", "only imports path")],
)
def test_reference_refuses(api, name, complaint):
    with pytest.raises(ValueError, match=complaint):
        api.expand(f"```{{api}} shapes\n{name}\n```")


# ---------------------------------------------------------------------- command line
def test_command_line_page_is_that_of_the_program():
    page = script("cli_reference")
    assert page.PAGE.read_text("utf-8") == page.render(), "python docs/scripts/cli_reference.py"


def test_command_line_page_has_every_command_and_option():
    import typer

    from internvl.cli import app

    text = (scripts.ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")

    def look(command, path):
        assert f"# `{path}`" in text
        for each in command.params:
            for option in each.opts:
                if option.startswith("--") and option != "--help":
                    assert re.search(rf"`[^`]*{re.escape(option)}\b", text), (path, option)
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                look(child, f"{path} {name}")

    look(typer.main.get_command(app), "internvl")


# ---------------------------------------------------------------------- picture
def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_picture_is_what_its_script_draws():
    picture = script("data_flow")
    assert (picture.IMAGES / "data_flow.svg").read_text("utf-8") == picture.render()


def test_picture_can_be_read_on_light_and_dark_pages():
    picture = script("data_flow")
    for kind in picture.KINDS.values():
        assert contrast("#ffffff", kind) >= 4.5  # titles on their heads
        for page in ("#ffffff", "#0d1117", "#131416"):  # GitHub and the site
            assert contrast(kind, page) >= 3
    assert contrast(picture.INK, picture.BODY) >= 7
    for page in ("#ffffff", "#0d1117"):
        assert contrast(picture.LINE, page) >= 3
    cards = list(picture.cards().values())
    width, height = picture.size()
    for card in cards:
        assert 0 < card.x < card.x + card.width < width
        assert 0 < card.y < card.y + card.height < height
        # DejaVu, the widest of the fonts: 0.62 em a letter on average, at 14 px.
        assert max(map(len, (*card.lines, card.shape))) * 14 * 0.62 < card.width


def test_picture_has_the_numbers_of_the_checkpoint():
    shapes = {title: card.shape for title, card in script("data_flow").cards().items()}
    assert shapes["InternViT"] == "(N, 1 + 1024, C)"
    assert shapes["Pixel unshuffle"] == "(N, 256, 4C)"


# ---------------------------------------------------------------------- links
def test_links_of_shown_files(tmp_path, monkeypatch):
    outside = script("outside_pages")
    docs = tmp_path / "docs"
    (docs / "project").mkdir(parents=True)
    (tmp_path / "demo").mkdir()
    (docs / "use.md").write_text("[the demo](../demo/README.md#how-well), [b](other.md)")
    (docs / "project" / "demo.md").write_text("```{outside} ../../demo/README.md\n```\n")
    readme = "---\nlicense: mit\n---\n# Demo\n[use](../docs/use.md#a) [x](https://x.org) [y](#y)\n"
    (tmp_path / "demo" / "README.md").write_text(readme + "```text\n[z](z.md)\n```\n")
    monkeypatch.setattr(outside, "DOCS", docs)

    def shown(page):
        return outside.expand(page.read_text(), page)

    assert shown(docs / "use.md") == "[the demo](project/demo.md#how-well), [b](other.md)"
    text = shown(docs / "project" / "demo.md")
    assert text.startswith("# Demo\n[use](../use.md#a) [x](https://x.org) [y](#y)\n")
    assert "[z](z.md)" in text


# ---------------------------------------------------------------------- the model card
def test_tables_and_badges_of_the_readme_are_those_of_the_files():
    text = (scripts.ROOT / "README.md").read_text("utf-8")
    readme = script("readme")
    assert readme.render(text) == text, "python docs/scripts/readme.py"
    stale = text.replace("| 146.0 GiB |", "| 145.0 GiB |").replace("badge/torch-", "badge/torch-9")
    assert stale != text
    assert readme.render(stale) == text
    with pytest.raises(ValueError, match="speed: begin"):
        readme.render(text.replace("speed: begin", "speed: start"))
