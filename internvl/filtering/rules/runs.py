"""Long runs of one character, of zeros, and of a few characters without a pause (report, section
4.3: "excessively long sequences of zeros").
"""

from __future__ import annotations

import re

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.structure import Structure
from internvl.filtering.rules.text import View
from internvl.filtering.verdict import Rule

# "0 0 0", "0, 0, 0", "0.0;0.0", "00"; signs, brackets and column marks of a matrix between them.
_ZERO = re.compile(r"0(?:[\s,;.:|&\-+\[\](){}\\]{0,6}0)*")
_DIGIT_RUN = re.compile(r"0{8,}")
_SAME = re.compile(r"([^\s])\1{15,}")
_PATTERN = re.compile(r"(?=.*[^\W_])\S+")  # lines may be drawn with signs, as in "-=-=-="
_LINES_DRAWN = frozenset("-_=*~#.+|\u2500\u2501\u2550\u2014\u2026\u00b7/\\")


def zero_run(*, max_zeros: int = 120, max_listed: int = 160) -> Rule:
    """Zeros without end.

    Args:
        max_zeros: zeros in one number. A googol, the longest that people write out, has 100.
        max_listed: zeros one after another in a list that is not closed, or in text. A list or
            matrix that is closed may have four times as many.
    """

    def check(view: View) -> Finding | None:
        if view.text.count("0") <= min(max_zeros, max_listed):
            return None
        number = max(_DIGIT_RUN.finditer(view.text), key=_length, default=None)
        if number and _length(number) > max_zeros:
            return _zeros(view, number, _length(number), max_zeros)
        structures = view.structures
        for match in _ZERO.finditer(view.text):
            zeros = match[0].count("0")
            if zeros <= max_listed:
                continue
            closed = any(s.start <= match.start() < s.end and _closes(view, s) for s in structures)
            limit = max_listed * (4 if closed else 1)
            if zeros > limit:
                return _zeros(view, match, zeros, limit)
        return None

    return over_answers("zero_run", check)


def _closes(view: View, found: Structure) -> bool:
    return found.kind != "numbers" or view.text[found.end - 1] in "])}"


def _length(match: re.Match[str]) -> int:
    return match.end() - match.start()


def _zeros(view: View, match: re.Match[str], zeros: int, limit: int) -> Finding:
    note = f"{zeros} zeros in a row; at most {limit} expected."
    return Finding(zeros, limit, *match.span(), note)


def character_run(*, max_letters: int = 40, max_signs: int = 300, max_pattern: int = 150) -> Rule:
    """One character, or a pattern of up to eight, again and again without a pause.

    Args:
        max_letters: the same letter, digit or Chinese character; zeros have a rule of their own.
        max_signs: the same sign. Lines are drawn with signs, and forms have blanks to fill in.
        max_pattern: characters of a pattern, as in "hahaha" or "121212"; a repeat in a gene and
            the period of a fraction are shorter.
    """

    def check(view: View) -> Finding | None:
        for match in _SAME.finditer(view.text):
            letter, length = match[1], _length(match)
            if letter == "0":
                continue
            limit = max_letters if letter.isalnum() else max_signs
            if letter not in _LINES_DRAWN and not letter.isalnum():
                limit = max(max_letters, max_signs // 3)
            if length > limit:
                note = f"{letter!r} stands {length} times in a row."
                return Finding(length, limit, *match.span(), note)
        return _pattern(view, max_pattern)

    return over_answers("character_run", check)


def _pattern(view: View, limit: int) -> Finding | None:
    """A few characters again and again: every run over the limit covers one of the probes whole."""
    text, probe = view.text, limit // 2
    for place in range(0, len(text) - probe + 1, probe):
        chunk = text[place : place + probe]
        period = next((p for p in range(2, 9) if chunk[p:] == chunk[:-p]), 0)
        if not period or len(set(chunk)) == 1 or not _PATTERN.fullmatch(chunk[:period]):
            continue
        start, end = place, place + probe
        while start and text[start - 1] == text[start - 1 + period]:
            start -= 1
        while end < len(text) and text[end] == text[end - period]:
            end += 1
        if end - start > limit:
            shown = text[start : start + period]
            note = f"{shown!r} stands {(end - start) // period} times without a pause."
            return Finding(end - start, limit, start, end, note)
    return None
