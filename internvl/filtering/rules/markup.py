r"""Tags and LaTeX that open and do not close: an answer that was cut, or that a model garbled.

Looked at are code fences, the grounding tags, `<think>`, HTML tables, `\begin` and `\end`, `\left`
and `\right`, `\[` and `\(`, `$$`, and braces inside `$$`. A lone `$` may be money, and a tag that
is named in a sentence ("the <table> tag") is no markup: what is in code is left out, and an HTML
table counts when it has rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import View
from internvl.filtering.verdict import Rule

_CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]*`", re.DOTALL)
_FENCE = re.compile(r"^[^\S\n]*```", re.MULTILINE)
_TAG = re.compile(r"<(/?)(ref|box|quad|think|table|thead|tbody)\b[^<>]*>", re.IGNORECASE)
_BEGIN = re.compile(r"\\(begin|end)\s*\{([^{}\n]{1,40})\}")
_DELIMITERS = re.compile(r"\\([\[\]()])")
_LEFT = re.compile(r"\\(left|right)(?![a-zA-Z])")
_DOLLARS = re.compile(r"(?<!\\)\$\$")
_DISPLAY = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.{1,2000}?)\\\]"
    r"|(?<![\\$\w])\$(?!\s)([^$\n]{1,400}?)(?<!\s)\$(?![\d$])",
    re.DOTALL,
)
_ANY = re.compile(r"[<\\$`]")


# (opens, name) of a match, or None where it is no markup.
_Reader = Callable[[re.Match[str]], tuple[bool, str] | None]


@dataclass(frozen=True)
class _Fault:
    start: int
    end: int
    what: str


def unbalanced_markup(*, max_faults: int = 0) -> Rule:
    """Markup that does not close, or closes what was not open.

    Args:
        max_faults: such places that are let pass.
    """

    def check(view: View) -> Finding | None:
        if not _ANY.search(view.text):
            return None
        faults = sorted(_faults(view.text), key=lambda fault: fault.start)
        if len(faults) <= max_faults:
            return None
        first = faults[0]
        return Finding(len(faults), max_faults, first.start, first.end, f"{first.what}.")

    return over_answers("unbalanced_markup", check)


def _faults(text: str) -> Iterator[_Fault]:
    fences = list(_FENCE.finditer(text))
    if len(fences) % 2:
        yield _Fault(*fences[-1].span(), "a code fence is not closed")
        text = text[: fences[-1].start()]
    text = _CODE.sub(lambda match: " " * len(match[0]), text)
    yield from _tags(text)
    if "\\" in text:
        yield from _nested(text, _BEGIN, lambda m: (m[1] == "begin", m[2].strip()))
        yield from _nested(text, _DELIMITERS, lambda m: (m[1] in "[(", _KIND[m[1]]))
    yield from _math(text)


_KIND = {"[": "\\[", "]": "\\[", "(": "\\(", ")": "\\("}


def _tags(text: str) -> Iterator[_Fault]:
    if "<" not in text:
        return
    rows = re.search(r"<t[rdh]\b", text, re.IGNORECASE) is not None
    boxes = re.search(r"<(?:box|quad)>\s*\[|\]\s*</(?:box|quad)>", text) is not None

    def read(match: re.Match[str]) -> tuple[bool, str] | None:
        name = match[2].lower()
        markup = rows if name[0] == "t" and name != "think" else boxes or name in ("ref", "think")
        return (not match[1], name) if markup else None

    yield from _nested(text, _TAG, read)


def _nested(text: str, pattern: re.Pattern[str], read: _Reader) -> Iterator[_Fault]:
    """Faults of things that open and close."""
    opened: list[tuple[str, re.Match[str]]] = []
    for match in pattern.finditer(text):
        meaning = read(match)
        if meaning is None:
            continue
        opens, name = meaning
        if opens:
            opened.append((name, match))
        elif opened and opened[-1][0] == name:
            opened.pop()
        else:
            yield _Fault(*match.span(), f"{match[0]} closes what is not open")
    for _, match in opened:
        yield _Fault(*match.span(), f"{match[0]} is not closed")


def _math(text: str) -> Iterator[_Fault]:
    dollars = list(_DOLLARS.finditer(text))
    if len(dollars) % 2:
        yield _Fault(*dollars[-1].span(), "$$ is not closed")
        return
    for match in _DISPLAY.finditer(text):
        inner = next(group for group in match.groups() if group is not None)
        braces = re.sub(r"\\[{}\\]", "", inner)
        if braces.count("{") != braces.count("}"):
            yield _Fault(*match.span(), f"braces do not match in {match[0]!r:.60}")
        sides = [side[1] for side in _LEFT.finditer(inner)]
        if sides.count("left") != sides.count("right"):
            yield _Fault(*match.span(), f"\\left and \\right do not match in {match[0]!r:.60}")
