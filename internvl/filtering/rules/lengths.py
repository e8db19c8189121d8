"""Sentences, words and answers of abnormal length (report, section 4.3)."""

from __future__ import annotations

import re

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import View, weight
from internvl.filtering.verdict import Rule

_LONG_WORD = re.compile(r"[^\W\d_]{60,}")
_URL = re.compile(r"(?:https?://|data:|www\.)\S*$")


def turn_length(*, max_weight: int = 60_000) -> Rule:
    """An answer longer than a row of the report's training.

    Args:
        max_weight: in letters. A row has 16,384 tokens (report, Table 3), of which one is about
            four letters; what is longer would be cut.
    """

    def check(view: View) -> Finding | None:
        if len(view.text) * 3 <= max_weight or (size := weight(view.text)) <= max_weight:
            return None
        note = f"The answer weighs {size} letters; at most {max_weight} fit a row of training."
        return Finding(size, max_weight, 0, len(view.text), note)

    return over_answers("turn_length", check)


def sentence_length(*, max_weight: int = 2_000, max_word: int = 100) -> Rule:
    """A sentence that does not end, or a word that is none.

    Lines end a sentence, and code, tables, lists of numbers and verse have none.

    Args:
        max_weight: of a sentence, in letters; claims of patents reach 1,500.
        max_word: letters of a word, addresses apart; the longest German ones have 80.
    """

    def check(view: View) -> Finding | None:
        longest_word = max(map(len, view.units), default=0)
        for match in _LONG_WORD.finditer(view.text) if longest_word > max_word else ():
            length = match.end() - match.start()
            before = view.text[max(0, match.start() - 200) : match.start()]
            if weight(match[0]) == length > max_word and not _URL.search(before):
                note = f"A word has {length} letters: {match[0]!r:.60}."
                return Finding(length, max_word, *match.span(), note)
        if len(view.text) * 3 <= max_weight:
            return None
        longest = max(view.sentences, key=lambda piece: len(piece.text), default=None)
        if longest and (size := weight(" ".join(longest.text.split()))) > max_weight:
            note = f"A sentence weighs {size} letters: {longest.text!r:.60}."
            return Finding(size, max_weight, longest.start, longest.end, note)
        return None

    return over_answers("sentence_length", check)
