"""Loops: an answer that says the same again and again (report Figure 6, first and second example).

    Z-function of the reversed units -> every period of the end -> the smallest that repeats enough
    nearest earlier trigram -> runs anywhere in the text, in one pass -> the longest

Both are linear in the length of the answer. Units are words, so punctuation between the repeats
does not matter ("... of time.....The relative positions ..."), and a last repeat that is cut in
the middle of a word is still a repeat. Loops whose sentences differ a little are in `near_loops`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import View, encode, lower, unit_spans, units, weight
from internvl.filtering.verdict import Record, Rule, Span, Verdict

# How often a period has to stand there, by its weight: a word can be said a few times for emphasis
# and a phrase in a list, but a sentence is not said three times in a row.
_WORD, _SENTENCE = 12, 25
_WORD_REPEATS, _PHRASE_REPEATS, _SENTENCE_REPEATS = 12, 5, 3
_CUT = 0.5  # the last repeat may be cut by so much of a period
# A passage that comes a second time. At the end it has to break off, as in the second example of
# Figure 6; one that is quoted ends as it began.
_PASSAGE, _PASSAGE_REPEATS = 80, 1.4
_CLOSED = re.compile(r"[.!?\u3002\uff01\uff1f\u201d\"')\]}>|`*$\u300d\uff09]\s*$")
_ELLIPSIS = re.compile(r"(?:\.{3,}|\u2026+)\s*$")
# Punctuation counts in code and tables.
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Run:
    """Units [start, end) that repeat with a period."""

    start: int
    end: int
    period: int

    @property
    def repeats(self) -> float:
        """How many periods there are; the last may be cut."""
        return (self.end - self.start) / self.period


def z_function(items: Sequence[object]) -> list[int]:
    """z[i]: how many items from i on equal those from the beginning; z[0] is the length.

    Linear: the window [left, right) is the known match that ends last.
    """
    n = len(items)
    z = [0] * n
    if n:
        z[0] = n
    left = right = 0
    for i in range(1, n):
        length = min(right - i, z[i - left]) if i < right else 0
        while i + length < n and items[length] == items[i + length]:
            length += 1
        if i + length > right:
            left, right = i, i + length
        z[i] = length
    return z


def suffix_runs(code: str) -> list[Run]:
    """Runs that last to the end, of each period, the smallest period first."""
    n = len(code)
    # Nothing repeats at the end when its last two units stand nowhere else.
    if n < 4 or code.rfind(code[-2:], 0, n - 1) < 0:
        return []
    z = z_function(code[::-1])
    return [Run(n - period - z[period], n, period) for period in range(1, n) if z[period] >= 2]


def inner_runs(code: str, n: int = 3) -> list[Run]:
    """Runs anywhere, found where an n-gram stands at a fixed distance from its last occurrence."""
    last: dict[str, int] = {}
    runs: list[Run] = []
    period, start = 0, 0
    for place in range(len(code) - n + 1):
        end = place + n - 1
        if period and code[end] != code[end - period]:
            runs.append(Run(start, end, period))
            period = 0
        gram = code[place : place + n]
        if not period and gram in last:
            period, start = place - last[gram], last[gram]
        last[gram] = place
    if period:
        runs.append(Run(start, len(code), period))
    return runs


def needed_repeats(period_weight: int) -> int:
    """How often a period of this weight has to stand in a row to be a loop."""
    if period_weight < _WORD:
        return _WORD_REPEATS
    return _PHRASE_REPEATS if period_weight < _SENTENCE else _SENTENCE_REPEATS


def _weights(view: View) -> list[int]:
    """Weight of all units before each place, with a blank after each word."""
    sizes = (size + (len(unit) == size) for unit, size in zip(view.units, view.sizes, strict=True))
    return [0, *itertools.accumulate(sizes)]


# ---------------------------------------------------------------------- suffix loop
def suffix_loop(*, min_repeated: int = 60) -> Rule:
    """An answer that ends in a loop.

    Args:
        min_repeated: weight of what is said again, that is of all periods but the first.
    """

    def check(view: View) -> Finding | None:
        said = view.units
        # The last unit may be cut ("The relative pos"). Without it the same period ends the text.
        whole = len(said) - 1
        sums: list[int] | None = None
        for run in suffix_runs(view.code[:whole]):
            sums = sums or _weights(view)
            period = sums[run.start + run.period] - sums[run.start]
            again = sums[run.end] - sums[run.start] - period
            needed = max(needed_repeats(period), view.asked_times + 1)
            if again >= min_repeated and run.repeats > needed - _CUT:
                return _found(view, Run(run.start, len(said), run.period), needed, "ends with")
            passage = again >= _PASSAGE and run.repeats >= _PASSAGE_REPEATS
            if passage and not view.asked_times and _breaks_off(view.text):
                run = Run(run.start, len(said), run.period)
                return _found(view, run, _PASSAGE_REPEATS, "breaks off after")
        return None

    return over_answers("suffix_loop", check)


def _breaks_off(text: str) -> bool:
    return bool(_ELLIPSIS.search(text)) or not _CLOSED.search(text)


def _found(view: View, run: Run, needed: float, how: str) -> Finding:
    spans = unit_spans(view.prose)
    start, end = spans[run.start][0], spans[run.end - 1][1]
    example = view.text[start : spans[run.start + run.period - 1][1]]
    note = f"The answer {how} {run.repeats:.1f} times {example!r:.80}."
    return Finding(run.repeats, needed, start, end, note)


# ---------------------------------------------------------------------- loops anywhere
def inner_loop(
    *, min_repeated: int = 60, structure_repeats: int = 12, structure_repeated: int = 1500
) -> Rule:
    """A loop anywhere in an answer: the text went on after it, or the answer is a table or code.

    Args:
        min_repeated: weight of what is said again, in prose.
        structure_repeats: periods in a row, in code, tables, lists of numbers and verse.
        structure_repeated: weight of what is said again, there.
    """

    def check(view: View) -> Finding | None:
        if view.repeated_share:
            found = _prose_loop(view, min_repeated)
            if found:
                return found
        if any(each.end - each.start > structure_repeated for each in view.structures):
            return _structure_loop(view, structure_repeats, structure_repeated)
        return None

    return over_answers("inner_loop", check)


def _prose_loop(view: View, min_repeated: int) -> Finding | None:
    sums: list[int] | None = None
    best: Finding | None = None
    for run in inner_runs(view.code):
        if run.repeats < _SENTENCE_REPEATS - _CUT:
            continue
        sums = sums or _weights(view)
        period = sums[run.start + run.period] - sums[run.start]
        needed = max(needed_repeats(period), view.asked_times + 1)
        again = sums[run.end] - sums[run.start] - period
        if run.repeats > needed - _CUT and again >= min_repeated:
            found = _found(view, run, needed, "says")
            best = found if best is None or found.severity > best.severity else best
    return best


def _structure_loop(view: View, repeats: int, repeated: int) -> Finding | None:
    for each in view.structures:
        if each.end - each.start <= repeated:
            continue
        part = lower(view.text[each.start : each.end])
        places = [match.span() for match in _TOKEN.finditer(part)]
        code = encode([part[start:end] for start, end in places])
        for run in inner_runs(code):
            start, end = places[run.start][0], places[run.end - 1][1]
            period = places[run.start + run.period - 1][1] - start
            if run.repeats >= repeats and end - start - period >= repeated:
                shown = part[start : start + period]
                note = f"{run.repeats:.0f} times {shown!r:.80}, in {each.kind}."
                return Finding(run.repeats, repeats, each.start + start, each.start + end, note)
    return None


# ---------------------------------------------------------------------- over turns
def repeated_answer(*, min_weight: int = 150) -> Rule:
    """An answer of some length that is given to several questions of one conversation.

    Args:
        min_weight: weight of an answer from which on it cannot be the same twice.
    """

    def rule(record: Record) -> Verdict | None:
        seen: dict[tuple[str, ...], int] = {}
        for number, text in record.answers:
            if weight(text) < min_weight:
                continue
            first = seen.setdefault(tuple(units(text)), number)
            if first != number:
                note = f"Turn {number + 1} is the answer of turn {first + 1} again."
                return Verdict(
                    "repeated_answer", weight(text), min_weight, Span(number, 0, len(text)), note
                )
        return None

    return rule
