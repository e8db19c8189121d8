"""Pages of the site whose text stands elsewhere in the repository, and links between the two.

A page of `docs/project/` is one line, which names the file to show:

    ```{outside} ../../demo/README.md
    ```

Links in a shown file are relative to that file, and pages of docs/ link to files outside of it, as
they must to work in a clone. On the site both lead to the page that shows the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
REPOSITORY = DOCS.parent
_DIRECTIVE = re.compile(r"^```\{outside\} (\S+)\n```$", re.MULTILINE)
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def shown_files() -> dict[Path, Path]:
    """Files outside of docs/ that a page shows, and that page."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        for target in _DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            pages[(page.parent / target).resolve()] = page
    return pages


def expand(text: str, page: Path) -> str:
    """Put the text of the shown file in the place of a directive, and correct all links.

    Args:
        text: of the page.
        page: its file.

    Raises:
        FileNotFoundError: the file to show does not exist.
    """
    shown = shown_files()

    def outside(match: re.Match) -> str:
        source = (page.parent / match[1]).resolve()
        body = _HEADER.sub("", source.read_text(encoding="utf-8"))
        return correct_links(body, source, page, shown)

    if _DIRECTIVE.search(text):
        return _DIRECTIVE.sub(outside, text)
    return correct_links(text, page, page, shown)


def correct_links(text: str, source: Path, page: Path, shown: dict[Path, Path]) -> str:
    """Rewrite links of a text that stands in `source` and is shown at `page`."""

    def correct(match: re.Match) -> str:
        target = (source.parent / match[1]).resolve()
        target = shown.get(target, target)
        if source == page and target.is_relative_to(DOCS) and target not in shown.values():
            return match[0]
        return f"]({os.path.relpath(target, page.parent)}{match[2] or ''})"

    parts = _FENCE.split(text)
    return "".join(part if i % 2 else _LINK.sub(correct, part) for i, part in enumerate(parts))


def _read(app: Any, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    for target in _DIRECTIVE.findall(content[0]):
        app.env.note_dependency(str((page.parent / target).resolve()))
    content[0] = expand(content[0], page)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
