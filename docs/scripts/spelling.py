"""Spelling of the prose: words that neither the dictionary nor docs/spelling.txt has.

    python docs/scripts/spelling.py                 # exit code 1, and file: word, word
    python docs/scripts/spelling.py --add word      # accept words, in their places by the alphabet

Looked at are the Markdown files that people read, without code, links, equations, names in capitals
or with capitals inside. The dictionary is that of pyspellchecker, which has British and American
spellings of most words; those that are right and missing there are in docs/spelling.txt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ACCEPTED = REPOSITORY / "docs" / "spelling.txt"
# Tables of names, written by programs.
NAMES = {"mixture.md", "benchmarks.md"}
_NOT_PROSE = (
    re.compile(r"\A---\n.*?\n---\n", re.DOTALL),  # the header of a model card
    re.compile(r"^(`{3,}).*?^\1", re.DOTALL | re.MULTILINE),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    re.compile(r"`[^`]*`"),
    re.compile(r"\$[^$\n]+\$"),
    re.compile(r"(?<=\])(\([^)\s]*\)|\[[^\]]*\])"),  # where a link leads
    re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE),
    re.compile(r"https?://\S+|</?\w+[^>]*>"),
)
_TABLE = re.compile(r"^\|.*$", re.MULTILINE)
_WORD = re.compile(r"(?<![\w./@])[A-Za-z][a-z]+(?:'[a-z]+)?(?![\w@/]|\.\w)")


def prose() -> list[Path]:
    """The files to look at."""
    named = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    folders = ("docs", "demo", "examples", "recipes", "space")
    found = [REPOSITORY / name for name in named]
    for folder in folders:
        found += sorted((REPOSITORY / folder).rglob("*.md"))
    return found


def words(text: str, *, tables: bool = True) -> set[str]:
    """Words of Markdown prose, as written; a possessive `'s` is taken off."""
    for pattern in _NOT_PROSE:
        text = pattern.sub(" ", text)
    if not tables:
        text = _TABLE.sub("", text)
    return {word.removesuffix("'s") for word in _WORD.findall(text)}


def accepted() -> set[str]:
    """Words of docs/spelling.txt, in lower case."""
    lines = ACCEPTED.read_text(encoding="utf-8").split("\n")
    return {line.lower() for line in lines if line and not line.startswith("#")}


@cache
def dictionary() -> Any:
    """English of pyspellchecker.

    Raises:
        ImportError: it is not installed.
    """
    from spellchecker import SpellChecker

    return SpellChecker(language="en")


def unknown(texts: Iterable[tuple[str, set[str]]]) -> dict[str, list[str]]:
    """Misspelt words of each text.

    Args:
        texts: name and words of each.
    """
    known, found = accepted(), {}
    for name, here in texts:
        wrong = dictionary().unknown({word.lower() for word in here} - known)
        if wrong:
            found[name] = sorted(wrong)
    return found


def check() -> dict[str, list[str]]:
    """Misspelt words of each file."""
    return unknown(
        (
            path.relative_to(REPOSITORY).as_posix(),
            words(path.read_text(encoding="utf-8"), tables=path.name not in NAMES),
        )
        for path in prose()
    )


def add(new: Iterable[str]) -> None:
    """Accept words."""
    head, *lines = ACCEPTED.read_text(encoding="utf-8").rstrip("\n").split("\n")
    lines = sorted({*lines, *(word.lower() for word in new)})
    ACCEPTED.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Print what is unknown, or accept it."""
    if arguments[:1] == ["--add"]:
        add(arguments[1:])
    found = check()
    for name, wrong in found.items():
        sys.stdout.write(f"{name}: {', '.join(wrong)}\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
