"""A text taken apart, once for all rules: units, sentences, lines, and what of it is prose.

A unit is a word, or one Chinese or Japanese character. A character of those says about as much as
three letters, so lengths are weights: a letter weighs one, such a character three. Thresholds hold
for both scripts then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from internvl.filtering.rules import structure
from internvl.filtering.rules.structure import Structure

# Han, kana, and the marks that iterate them.
CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
CJK_WEIGHT = 3
_CJK = re.compile(f"[{CJK}]")
_UNIT = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:['\u2019][^\W_{CJK}]+)*")
# A full stop between digits or letters ("3.5", "e.g.") ends nothing.
_SENTENCE_END = re.compile(
    r"[.!?\u2026]+[\"')\]\u201d\u2019]*(?=\s|[A-Z]|$)|[\u3002\uff01\uff1f\uff1b]+|\n+"
)
_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*")
_NUMBER_WORDS = {
    "two": 2, "twice": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "twelve": 12, "twenty": 20, "thirty": 30, "fifty": 50, "hundred": 100,
    "两": 2, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10,
    "二十": 20, "五十": 50, "一百": 100,
}  # fmt: skip
_ASKED_TIMES = re.compile(
    r"(\w+)\s+times\b|\b(twice)\b|(\d+|[一二三四五六七八九十两百]{1,2})\s*[遍次]", re.IGNORECASE
)
_REPEAT = re.compile("repeat|write|say|print|copy|重复|写|说|抄", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """A part of a text that means something by itself.

    Attributes:
        text: without the blanks around it.
        start: its first character in the whole.
        end: one after its last character.
    """

    text: str
    start: int
    end: int


def weight(text: str) -> int:
    """Length in letters; see the top of the file."""
    if text.isascii():
        return len(text)
    return len(text) + (CJK_WEIGHT - 1) * len(_CJK.findall(text))


def units(text: str) -> list[str]:
    """Words in lower case, and single Chinese and Japanese characters; no punctuation."""
    return _UNIT.findall(lower(text))


def lower(text: str) -> str:
    """Lower case in which every character stays at its place."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Where each of `units` stands."""
    return [match.span() for match in _UNIT.finditer(lower(text))]


def split(text: str, ends: re.Pattern[str], *, keep: bool) -> list[Piece]:
    """Pieces of a text between separators, stripped; empty ones are left out.

    Args:
        text: the text.
        ends: what separates.
        keep: whether the separator belongs to the piece before it.
    """
    pieces, start = [], 0
    cuts = [match.span() for match in ends.finditer(text)] + [(len(text), len(text))]
    for begin, end in cuts:
        chunk = text[start : end if keep else begin]
        stripped = chunk.strip()
        if stripped:
            first = start + len(chunk) - len(chunk.lstrip())
            pieces.append(Piece(stripped, first, first + len(stripped)))
        start = end
    return pieces


class View:
    """A text, and the parts of it that rules ask for; each is computed when it is first asked for.

    Args:
        text: what the assistant says.
        question: what the user said before it.
    """

    def __init__(self, text: str, question: str = "") -> None:
        self.text = text
        self.question = question

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """Parts that repeat for a reason: code, tables, lists of numbers, verse, ..."""
        return structure.find(self.text)

    @cached_property
    def prose(self) -> str:
        """The text with its structures blanked out; every character stays at its place."""
        if not self.structures:
            return self.text
        parts, done = [], 0
        for each in self.structures:
            blank = "".join("\n" if c == "\n" else " " for c in self.text[each.start : each.end])
            parts += [self.text[done : each.start], blank]
            done = each.end
        return "".join([*parts, self.text[done:]])

    @cached_property
    def units(self) -> list[str]:
        """Units of the prose."""
        return units(self.prose)

    @cached_property
    def sizes(self) -> list[int]:
        """Weights of the units."""
        return [
            CJK_WEIGHT if len(unit) == 1 and unit > "\u3000" else len(unit) for unit in self.units
        ]

    @cached_property
    def code(self) -> str:
        """The units of the prose as one string, a character for each distinct unit."""
        return encode(self.units)

    @cached_property
    def mostly_cjk(self) -> bool:
        """Whether more than half of the units are Chinese or Japanese characters."""
        count = sum(1 for unit in self.units if len(unit) == 1 and unit > "\u3000")
        return 2 * count > len(self.units)

    @cached_property
    def repeated_share(self) -> float:
        """Share of the prose's units inside a trigram that occurred before."""
        return repeated_share(self.code, 6 if self.mostly_cjk else 3)

    @cached_property
    def sentences(self) -> list[Piece]:
        """Sentences of the prose; a line break ends one too."""
        return split(self.prose, _SENTENCE_END, keep=True)

    @cached_property
    def lines(self) -> list[Piece]:
        """Lines of the prose that are not blank."""
        return split(self.prose, re.compile(r"\n+"), keep=False)

    @cached_property
    def paragraphs(self) -> list[Piece]:
        """Paragraphs of the prose: what blank lines separate."""
        return split(self.prose, _PARAGRAPH_BREAK, keep=False)

    @cached_property
    def asked_times(self) -> int:
        """How often the question asks for something to be said; 0 when it does not."""
        if not _REPEAT.search(self.question):
            return 0
        found = ["".join(groups).lower() for groups in _ASKED_TIMES.findall(self.question)]
        numbers = [int(n) if n.isdecimal() else _NUMBER_WORDS.get(n, 0) for n in found]
        return max(numbers, default=0)


@lru_cache(maxsize=64)
def view(text: str, question: str = "") -> View:
    """The view of a text. The last few are kept, so that rules share one."""
    return View(text, question)


def encode(items: Sequence[object]) -> str:
    """A string with one character for each item, equal where the items are equal.

    Slices, hashes and searches of strings run at the speed of C, those of lists do not.
    """
    seen: dict[object, int] = {}
    return "".join([chr(seen.setdefault(item, len(seen))) for item in items])


def repeated_share(code: str, n: int) -> float:
    """Share of the items inside an n-gram that occurred before, each counted once."""
    if len(code) <= n:
        return 0.0
    seen: set[str] = set()
    covered, end = 0, 0
    for start in range(len(code) - n + 1):
        gram = code[start : start + n]
        if gram in seen:
            covered += start + n - max(start, end)
            end = start + n
        else:
            seen.add(gram)
    return covered / len(code)
