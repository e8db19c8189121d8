"""The examples that an empty chat offers, out of examples/questions.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from internvl import hub

FOLDER = hub.REPOSITORY / "examples"
# What is offered, by the first file of an entry: each shows something else.
_OFFERED = ("six.jpg", "left.png", "moving.mp4", "chart.png", "sign.png", "three.png")


@dataclass(frozen=True)
class Example:
    """A question about files that the repository brings.

    Attributes:
        title: a few words for the button.
        question: what is asked.
        files: images and videos.
    """

    title: str
    question: str
    files: tuple[Path, ...]


def load_examples(folder: Path = FOLDER) -> list[Example]:
    """Examples in the order in which they are offered; none when the folder is missing.

    Of several questions about the same files the longest is taken, which asks for most.
    """
    listing = folder / "questions.json"
    if not listing.is_file():
        return []
    best: dict[str, Example] = {}
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        question = entry.get("question")
        names = entry.get("images") or [entry.get("video") or entry.get("image")]
        if question is None or names[0] not in _OFFERED:
            continue
        known = best.get(names[0])
        if known is None or len(question) > len(known.question):
            files = tuple(folder / name for name in names)
            best[names[0]] = Example(_title(question), question, files)
    return [best[name] for name in _OFFERED if name in best]


def _title(question: str) -> str:
    """The question; that for a box in words that people use."""
    head, _, rest = question.partition("<ref>")
    return f"Where is the {rest.partition('</ref>')[0]}? Draw a box." if rest else head
