"""Repetition of n-grams after Gopher (Rae et al. 2021, Table A1).

A top n-gram is the one that takes the most characters; a duplicated n-gram stood there before, and
its characters count once however many n-grams they are in. Gopher counts the words of long English
pages. Four things differ here, since answers are short and often Chinese:

* Only prose counts; code, tables, lists of numbers and verse are left out (`structure`).
* In Chinese, n words are 2n characters: a word has about two of them.
* In a short answer a name that is said five times is a quarter of the text. Below `min_units` no
  share is looked at, and up to 300 words the limits are wider by sqrt(300 / words).
* An enumeration repeats its form on purpose (`near_loops.enumerates`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.near_loops import enumerates
from internvl.filtering.rules.text import View, unit_spans
from internvl.filtering.verdict import Rule

TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_FULL_LENGTH = 300  # words


def ngram_repetition(
    *,
    top: Mapping[int, float] = TOP,
    duplicated: Mapping[int, float] = DUPLICATED,
    min_units: int = 60,
) -> Rule:
    """Too many characters in one n-gram, or in n-grams that stood there before.

    Args:
        top: share of the characters in the most frequent n-gram, by n.
        duplicated: share of the characters in n-grams that stood there before, by n.
        min_units: words, or half of the Chinese characters, of an answer that is looked at.
    """
    top = {int(n): share for n, share in top.items()}
    duplicated = {int(n): share for n, share in duplicated.items()}

    def check(view: View) -> Finding | None:
        scale = 2 if view.mostly_cjk else 1
        short = len(view.units) < min_units * scale
        if short or not view.repeated_share or view.asked_times:
            return None
        finding = _worst(view, top, duplicated, scale)
        return None if finding is None or enumerates(view) else finding

    return over_answers("ngram_repetition", check)


def _worst(
    view: View, top: Mapping[int, float], duplicated: Mapping[int, float], scale: int
) -> Finding | None:
    """The first n-gram over its limit."""
    sizes = view.sizes
    total, slack = sum(sizes), _slack(len(sizes) / scale)
    for n, limit in top.items():
        found = _top(view, n * scale, sizes, total)
        if found.score > limit * slack:
            return _finding(view, found, limit * slack, f"{n}-gram")
    lowest = slack * min(duplicated.values(), default=1.0)
    for n, limit in sorted(duplicated.items()):
        found = _duplicated(view, n * scale, sizes, total)
        if found.score > limit * slack:
            return _finding(view, found, limit * slack, f"duplicated {n}-grams")
        if found.score <= lowest:
            break  # a longer n-gram that stood there before is made of shorter ones
    return None


def _slack(words: float) -> float:
    """Factor on the limits of a short answer."""
    return max(1.0, math.sqrt(_FULL_LENGTH / words))


class _Share:
    """A share of the characters, and the units [first, last] that show it."""

    def __init__(self, score: float, first: int, last: int) -> None:
        self.score, self.first, self.last = score, first, last


def _top(view: View, n: int, sizes: list[int], total: int) -> _Share:
    code = view.code
    counts = Counter([code[i : i + n] for i in range(len(code) - n + 1)])
    # Of the most frequent ones, since the longest of the others can hardly take more.
    best = _Share(0.0, 0, 0)
    for gram, count in counts.most_common(3):
        first = code.find(gram)
        score = count * sum(sizes[first : first + n]) / total
        if count > 1 and score > best.score:
            best = _Share(score, first, code.rfind(gram) + n - 1)
    # "a a a a": overlapping ones would count a character n times.
    best.score = min(1.0, best.score)
    return best


def _duplicated(view: View, n: int, sizes: list[int], total: int) -> _Share:
    code = view.code
    seen: set[str] = set()
    covered = end = 0
    first = last = -1
    for start in range(len(code) - n + 1):
        gram = code[start : start + n]
        if gram not in seen:
            seen.add(gram)
            continue
        covered += sum(sizes[max(start, end) : start + n])
        end = last = start + n
        first = start if first < 0 else first
    return _Share(covered / total, max(first, 0), max(last - 1, 0))


def _finding(view: View, share: _Share, limit: float, what: str) -> Finding:
    spans = unit_spans(view.prose)
    start, end = spans[share.first][0], spans[share.last][1]
    shown = view.text[start:end]
    note = f"{share.score:.0%} of the prose is in {what}, e.g. {shown!r:.80}."
    return Finding(share.score, round(limit, 4), start, end, note)
