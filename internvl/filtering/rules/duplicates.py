"""Lines, paragraphs and sentences that stand more than once in an answer (report, section 4.3:
"text with an excessive number of duplicate lines").

Thresholds on shares are those of Gopher (Rae et al. 2021, Table A1): .30 of the lines or
paragraphs, .20 of their characters. Gopher's documents are long web pages; answers are short, so a
line has to be of some length to count, and a few of them have to be duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.near_loops import goes_in_steps
from internvl.filtering.rules.text import Piece, View, weight
from internvl.filtering.verdict import Rule

# "1. ", "- ", "(a) ": the number of an item does not make it another.
_BULLET = re.compile(r"^(?:[-*\u2022+]|\(?(?:\d+|[a-zA-Z])[.)\u3001:])\s+")
_ENDS = " .,;:!?\u2026\u3002\uff0c\uff01\uff1f"


def duplicate_lines(
    *,
    max_share: float = 0.3,
    max_characters: float = 0.2,
    min_weight: int = 16,
    min_copies: int = 3,
) -> Rule:
    """Lines that were there before.

    Args:
        max_share: part of the lines (Gopher's .30).
        max_characters: part of their characters (Gopher's .20).
        min_weight: of a line that counts; "Yes" and "---" may stand in many places.
        min_copies: copies before the shares are looked at.
    """

    def check(view: View) -> Finding | None:
        return _check(view, view.lines, "lines", max_share, max_characters, min_weight, min_copies)

    return over_answers("duplicate_lines", check)


def duplicate_paragraphs(
    *,
    max_share: float = 0.3,
    max_characters: float = 0.2,
    min_weight: int = 60,
    min_copies: int = 1,
) -> Rule:
    """Paragraphs that were there before.

    Args:
        max_share: part of the paragraphs (Gopher's .30).
        max_characters: part of their characters (Gopher's .20).
        min_weight: of a paragraph that counts.
        min_copies: copies before the shares are looked at.
    """

    def check(view: View) -> Finding | None:
        return _check(
            view, view.paragraphs, "paragraphs", max_share, max_characters, min_weight, min_copies
        )

    return over_answers("duplicate_paragraphs", check)


def duplicate_sentences(
    *,
    max_share: float = 0.3,
    max_characters: float = 0.2,
    min_weight: int = 24,
    min_copies: int = 3,
) -> Rule:
    """Sentences that were there before, wherever they stand.

    Args:
        max_share: part of the sentences; Gopher's threshold of lines.
        max_characters: part of their characters; likewise.
        min_weight: of a sentence that counts; "This is correct." may come back.
        min_copies: copies before the shares are looked at.
    """

    def check(view: View) -> Finding | None:
        if not view.repeated_share or goes_in_steps(view):
            return None
        return _check(
            view, view.sentences, "sentences", max_share, max_characters, min_weight, min_copies
        )

    return over_answers("duplicate_sentences", check)


def _check(
    view: View,
    pieces: Sequence[Piece],
    name: str,
    max_share: float,
    max_characters: float,
    min_weight: int,
    min_copies: int,
) -> Finding | None:
    if len(pieces) <= min_copies:
        return None
    seen: dict[str, int] = {}
    copies: list[Piece] = []
    counted = counted_weight = copied_weight = 0
    for piece in pieces:
        size = weight(piece.text)
        if size < min_weight:
            continue
        counted += 1
        counted_weight += size
        key = _BULLET.sub("", piece.text).lower().rstrip(_ENDS)
        times = seen[key] = seen.get(key, 0) + 1
        if times > max(1, view.asked_times):
            copies.append(piece)
            copied_weight += size
    if len(copies) < min_copies:
        return None
    share, characters = len(copies) / counted, copied_weight / counted_weight
    if share <= max_share and characters <= max_characters:
        return None
    score, limit = (share, max_share) if share > max_share else (characters, max_characters)
    note = f"{len(copies)} of {counted} {name} stood there before, e.g. {copies[0].text!r:.80}."
    return Finding(score, limit, copies[0].start, copies[-1].end, note)
