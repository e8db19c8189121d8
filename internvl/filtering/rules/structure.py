"""What repeats for a reason: code, tables, arrays, JSON and boxes, lists of numbers, verse.

Rules on repetition look at the rest, the prose, and judge these parts by a loop of their own that
only gross repetition reaches. A part counts as structure when it is complete: a list that is never
closed is more likely the loop of a model than a list.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["code", "table", "latex", "data", "numbers", "verse"]

_MATH = "align|aligned|array|cases|gather|equation|tabular|table|tikzpicture|split|multline"
_FENCE = re.compile(r"^[^\S\n]*(```|~~~)([^\n]*)$", re.MULTILINE)
_ENVIRONMENT = re.compile(r"\\(begin|end)\{((?:[a-zA-Z]?matrix|" + _MATH + r")\*?)\}")
# What opens, and what closes it. Searched for from where it opened, once: a regular expression
# would look through the rest of the text for each one that is not closed.
_PAIRS: tuple[tuple[Kind, re.Pattern[str], re.Pattern[str]], ...] = (
    ("table", re.compile(r"<table\b", re.IGNORECASE), re.compile(r"</table>", re.IGNORECASE)),
    ("latex", re.compile(r"\$\$"), re.compile(r"\$\$")),
    ("latex", re.compile(r"\\\["), re.compile(r"\\\]")),
)
_MARKED: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("data", re.compile(r"(?:<ref>[^<]*</ref>\s*)?<(box|quad)>[^<]*</\1>")),
    # Bracketed lists of numbers, nested twice at most, and closed.
    ("numbers", re.compile(r"[\[({](?:[\d\s.,;:+\-eE]|[\[({][\d\s.,;:+\-eE]*[\])}]){12,}[\])}]")),
    ("numbers", re.compile(r"(?:[-+]?\d[\d.,/:%]*[,;]?[^\S\n]+){8,}[-+]?\d[\d.,/:%]*")),
)
_ANY_MARK = re.compile(r"```|~~~|<table|<box>|<quad>|\\begin|\$\$|\\\[|\d[\s,;\])}]", re.IGNORECASE)
_JSON_START = re.compile(r'[\[{]\s*(?=["\[{\d\-\]}])')
_TABLE_ROW = re.compile(r"[^\S\n]*\|.*\||[^|\t\n]+(?:[|\t][^|\t\n]*){2,}$|\+[-=+]{3,}\+|.*&.*\\\\")
_CODE_LINE = re.compile(
    r"[^\S\n]*(?:"
    r".*[;{}]$|[\])}]+[,;]?$"
    r"|(?:#include|import |from \w|def |class |return\b|public |private |else\b|for ?\(|while ?\()"
    r"|(?:if ?\(|elif |print\(|console\.|const |let |var |SELECT |INSERT |</?\w+[^>]*>)"
    r"|(?://|/\*|\*/|@\w+|\$ |>>> )"
    r"|[\w.\[\]\"']+ *(?:=|\+=|:=) *\S.*|[\w.]+\(.*\)$|(?:for|while|if|with|try|except)\b.*:$"
    r"|\w+:(?: \S+)?$)"
)
_INDENTED = re.compile(r"(?: {4}|\t)\s*\S")
# Digits, operators and the letters of a variable: `2 x 3 = 6`, `0.00 12.5 %`.
_NUMBER_LINE = re.compile(
    r"(?=.*\d)[\d\s.,:;%$\u20ac\u00a3\u00a5()\[\]|/+\-*=^<>\u00d7\u00f7\u00b7xXyn#&\\]+$"
)
_SMALLEST_BLOCK = 3
_SEPARATOR = 4  # characters
_VERSE_LINE = 72  # characters; Chinese verse has lines of at most a third of it


@dataclass(frozen=True)
class Structure:
    """Characters [start, end) that form one structure."""

    kind: Kind
    start: int
    end: int


def find(text: str) -> tuple[Structure, ...]:
    """Structures of a text in their order; they do not overlap."""
    found: list[Structure] = []
    if _ANY_MARK.search(text):
        for kind, pattern in _MARKED:
            found += [Structure(kind, *match.span()) for match in pattern.finditer(text)]
        for kind, opens, closes in _PAIRS:
            found += _pairs(text, kind, opens, closes)
        found += _fences(text)
        found += _environments(text)
    found += _json_values(text)
    if text.count("\n") >= _SMALLEST_BLOCK - 1:
        lines = _lines(text)
        found += _blocks(lines)
        found += _verse(lines)
    return tuple(_merged(found, text))


def _merged(found: list[Structure], text: str) -> Iterator[Structure]:
    """Each character in one structure: the one that begins first, joined with those it meets.

    Boxes in a row are one structure as well, with what separates them.
    """
    if not found:
        return
    found.sort(key=lambda each: (each.start, -each.end))
    current = found[0]
    for each in found[1:]:
        between = text[current.end : each.start]
        beside = len(between) <= _SEPARATOR and not between.strip(" ,;\n")
        if each.start < current.end or (beside and each.kind == current.kind):
            current = Structure(current.kind, current.start, max(current.end, each.end))
        else:
            yield current
            current = each
    yield current


def _pairs(
    text: str, kind: Kind, opens: re.Pattern[str], closes: re.Pattern[str]
) -> Iterator[Structure]:
    """Parts between what opens and the next that closes."""
    place = 0
    while (first := opens.search(text, place)) and (last := closes.search(text, first.end())):
        yield Structure(kind, first.start(), last.end())
        place = last.end()


def _fences(text: str) -> Iterator[Structure]:
    """Code between fences of one kind; the second has nothing beside it."""
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif opened[1] == match[1] and not match[2].strip():
            yield Structure("code", opened.start(), match.end())
            opened = None


def _environments(text: str) -> Iterator[Structure]:
    """LaTeX from the first `\\begin` of a name to the next `\\end` of it."""
    opened: dict[str, int] = {}
    for match in _ENVIRONMENT.finditer(text):
        if match[1] == "begin":
            opened.setdefault(match[2], match.start())
        elif match[2] in opened:
            yield Structure("latex", opened.pop(match[2]), match.end())


def _json_values(text: str) -> Iterator[Structure]:
    """Complete JSON objects and lists of some length, wherever they stand."""
    decoder, place, tries = json.JSONDecoder(), 0, 0
    # A text of opening brackets must not cost a parse from each of them.
    while tries < 64 and (match := _JSON_START.search(text, place)):
        place, tries = match.start() + 1, tries + 1
        try:
            _, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if end - match.start() >= 20:
            yield Structure("data", match.start(), end)
        place = end


def _lines(text: str) -> list[tuple[str, int]]:
    lines, start = [], 0
    for line in text.split("\n"):
        lines.append((line, start))
        start += len(line) + 1
    return lines


def _line_kind(line: str) -> Kind | None:
    if _TABLE_ROW.match(line):
        return "table"
    if _NUMBER_LINE.match(line):
        return "numbers"
    if _CODE_LINE.match(line):
        return "code"
    return None


def _blocks(lines: Sequence[tuple[str, int]]) -> Iterator[Structure]:
    """Runs of three lines or more of one kind; blank ones, and indented ones in code, go along."""
    kind: Kind | None = None
    members: list[tuple[str, int]] = []
    for line, start in [*lines, ("end", -1)]:
        own = _line_kind(line) if start >= 0 else None
        if members and (not line.strip() or (kind == "code" and _INDENTED.match(line))):
            members.append((line, start))
            continue
        if own is not None and own == kind:
            members.append((line, start))
            continue
        while members and not members[-1][0].strip():
            members.pop()
        if kind is not None and sum(bool(m[0].strip()) for m in members) >= _SMALLEST_BLOCK:
            yield Structure(kind, members[0][1], members[-1][1] + len(members[-1][0]))
        kind, members = own, [(line, start)] if own is not None else []


def _verse(lines: Sequence[tuple[str, int]]) -> Iterator[Structure]:
    """Many short lines that are no sentences: verse, lyrics with a refrain, forms and receipts.

    A refrain comes back; a loop is nearly all of the text. So lines differ enough, and none
    stands many times in a row.
    """
    said = [(line.strip(), start) for line, start in lines if line.strip()]
    if len(said) < 8:
        return
    short = [line for line, _ in said if len(line) <= (_VERSE_LINE if line.isascii() else 45)]
    ended = sum(line.endswith((".", "\u3002")) for line in short)
    counts = Counter(short)
    if (
        len(short) < 0.8 * len(said)
        or ended > 0.5 * len(short)
        or len(counts) < max(5, 0.4 * len(short))
        or counts.most_common(1)[0][1] > len(short) / 3
        or _longest_streak([line for line, _ in said]) > 4
    ):
        return
    yield Structure("verse", said[0][1], lines[-1][1] + len(lines[-1][0]))


def _longest_streak(items: Sequence[str]) -> int:
    longest = streak = 0
    last = None
    for item in items:
        streak = streak + 1 if item == last else 1
        longest, last = max(longest, streak), item
    return longest
