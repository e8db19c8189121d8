"""Text of scripts that do not go together, and text that was decoded wrongly.

A model that derails writes words of many languages without a break between them. Translations,
names in the original and units ("5 \u00b5m", "\u0394t") are no garbage: a change of script counts
where two alphabets meet inside a word, or words of three alphabets follow each other without
punctuation. Random words of a single script are not found here.
"""

from __future__ import annotations

import re

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import View
from internvl.filtering.verdict import Rule

# Alphabets by ranges of code points. Greek is missing on purpose: formulas mix it with Latin. So
# are Han and kana, which stand beside everything.
_ALPHABETS = {
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
    "cyrillic": "\u0400-\u052f",
    "armenian": "\u0530-\u058f",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "indic": "\u0900-\u0dff",
    "thai": "\u0e00-\u0eff",
    "georgian": "\u10a0-\u10ff",
    "ethiopic": "\u1200-\u137f",
    "khmer": "\u1780-\u17ff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
}
_NAMES = list(_ALPHABETS)
_RUN = re.compile("|".join(f"([{ranges}]+)" for ranges in _ALPHABETS.values()))
_FOREIGN = re.compile("[" + "".join(list(_ALPHABETS.values())[1:]) + "]")
# Written without blanks, or with particles that follow foreign words directly.
_JOINS_LATIN = {"hangul", "thai", "khmer"}
_BROKEN = re.compile(
    "\ufffd|\u951f\u65a4\u62f7|\u70eb\u70eb\u70eb|\u00ef\u00bf\u00bd"
    "|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac.|\u00e2\u0080.|[\u00e4-\u00e9][\u0080-\u00bf]{2}"
    "|[\u0000-\u0008\u000b\u000e-\u001f\u007f\ue000-\uf8ff]"
)
# Control characters aside, ASCII has nothing to find.
_CONTROL = re.compile("[\u0000-\u0008\u000b\u000e-\u001f\u007f]")


def mixed_scripts(*, max_share: float = 0.05, min_changes: int = 4) -> Rule:
    """Alphabets that change inside words or from word to word.

    Args:
        max_share: changes per run of letters of one alphabet.
        min_changes: changes before the share is looked at.
    """

    def check(view: View) -> Finding | None:
        if view.text.isascii() or len(_FOREIGN.findall(view.text)) < min_changes:
            return None
        found = _RUN.finditer(view.text)
        runs = [(*match.span(), _NAMES[(match.lastindex or 1) - 1]) for match in found]
        changes = [start for start, *_ in _changes(view.text, runs)]
        if len(changes) < min_changes or len(changes) / len(runs) <= max_share:
            return None
        note = f"The alphabet changes {len(changes)} times without punctuation between."
        share = len(changes) / len(runs)
        return Finding(share, max_share, changes[0], max(changes[-1], changes[0] + 1), note)

    return over_answers("mixed_scripts", check)


def _changes(text: str, runs: list[tuple[int, int, str]]) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for index in range(1, len(runs)):
        (_, end, before), (start, _, after) = runs[index - 1], runs[index]
        if before == after:
            continue
        between = text[end:start]
        if not between and not ("latin" in (before, after) and _JOINS_LATIN & {before, after}):
            found.append((start, after))
        elif between == " " and index > 1:
            # Two alphabets take turns in bilingual text; a third one next to them does not.
            earlier_start, earlier_end, earlier = runs[index - 2]
            joined = text[earlier_end : runs[index - 1][0]] in ("", " ") and earlier_start < end
            if joined and earlier not in (before, after):
                found.append((start, after))
    return found


def broken_encoding(*, max_share: float = 0.005, min_characters: int = 3) -> Rule:
    """Replacement characters, control characters, and UTF-8 read as another encoding.

    Args:
        max_share: part of the characters.
        min_characters: such places before the share is looked at.
    """

    def check(view: View) -> Finding | None:
        pattern = _CONTROL if view.text.isascii() else _BROKEN
        places = [match.span() for match in pattern.finditer(view.text)]
        if len(places) < min_characters:
            return None
        share = sum(end - start for start, end in places) / len(view.text)
        if share <= max_share:
            return None
        note = f"{len(places)} places are not the text that was meant."
        return Finding(share, max_share, places[0][0], places[-1][1], note)

    return over_answers("broken_encoding", check)
