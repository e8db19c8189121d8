"""Answers that are none: nothing is said, or the answer is refused."""

from __future__ import annotations

import re

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import View
from internvl.filtering.verdict import Rule

_TAGS = re.compile(r"<think>.*?</think>|</?(?:think|answer)>|<(?:image|video)>", re.DOTALL)
# Blanks that `str.strip` does not know, dots, and quotes around nothing.
_NOTHING = re.compile(
    r"[\s\u200b-\u200f\u2060\ufeff.\u3002\u2026\u00b7\"'`\u201c\u201d\u2018\u2019]+"
)
_PLACEHOLDER = re.compile(
    r"""nan
    | \[ (?:insert\ |your\ )? (?:answer|response) (?:\ here)? \]
    | [<{]{1,2} (?:answer|response) [>}]{1,2}
    """,
    re.IGNORECASE | re.VERBOSE,
)

# Later in an answer somebody may be quoted.
_BEGINNING = 220
_CANNOT = (
    r"(?:can(?:'|\u2019)?t|can\ ?not|won(?:'|\u2019)?t"
    r"|(?:am|(?:'|\u2019)m)\ (?:not\ able|unable)\ to"
    r"|do(?:\ not|n(?:'|\u2019)t)\ have\ the\ (?:ability|capability)\ to)"
)
_ADVERB = r"(?:\ (?:directly|actually|really|currently|physically))?"
# What an assistant does, and hardly anybody says of himself in a letter.
_ASSIST = "assist|help|fulfill?|comply|answer|respond|engage|process|view|access|see"
_DO = (
    f"{_ASSIST}|provide|analy[sz]e|identify|generate|create|discuss|share|offer|complete|continue"
    "|support|determine|interpret|open|browse|describe|tell"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE | re.VERBOSE)
    for pattern in (
        # "I'm sorry, but I can't assist with that."
        rf"""^\W* (?:(?:i(?:'|\u2019)m|i\ am)\ (?:very\ |so\ |really\ )?(?:sorry|afraid)
            |sorry|apologies|i\ apologi[sz]e|unfortunately)\b
            [^.!?\n]{{0,60}}? \bi\ ?{_CANNOT}{_ADVERB}\ (?:{_DO})\b""",
        # "I cannot fulfill this request."
        rf"^\W* i\ ?{_CANNOT}{_ADVERB}\ (?:{_ASSIST})\b",
        # "As an AI language model, I don't have access to ..."
        rf"""^\W* as\ an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model|text-based)\b
            [^.!?\n]{{0,60}}? \bi\ ?(?:{_CANNOT}|do(?:\ not|n(?:'|\u2019)t)\ have)\b""",
        r"""^\W* (?:对不起|抱歉|很抱歉|非常抱歉|不好意思)[^\u3002\uff01\n]{0,20}?(?:我|作为)
            [^\u3002\uff01\n]{0,24}?(?:无法|不能|没有办法|没办法)""",
        r"""^\W* 我(?:无法|不能)(?:直接)?
            (?:回答|提供|协助|帮助|查看|访问|处理|满足|识别|生成|看到)""",
        r"""^\W* 作为(?:一个|一名|一款)?(?:人工智能|AI|大?语言模型)
            [^\u3002\uff01\n]{0,30}?(?:无法|不能|没有)""",
    )
)


def empty_answer(*, min_characters: int = 1) -> Rule:
    """An answer of blanks, dots or a placeholder, or with nothing after its reasoning.

    A sign can be an answer ("+", "?"), and so can "None"; "nan" is a missing value of a table.

    Args:
        min_characters: that are neither blank nor dot.
    """

    def check(view: View) -> Finding | None:
        said = _TAGS.sub("", view.text).strip()
        left = len(_NOTHING.sub("", said)) if len(said) < 200 else len(said)
        if left >= min_characters and not _PLACEHOLDER.fullmatch(said):
            return None
        left = 0 if left >= min_characters else left
        note = f"The answer says nothing: {view.text!r:.60}."
        return Finding(left, min_characters, 0, len(view.text), note, below=True)

    return over_answers("empty_answer", check)


def refusal(*, max_position: int = _BEGINNING) -> Rule:
    """An answer that begins by refusing, in English or Chinese.

    Refusals that are wanted, of harmful requests for instance, are flagged too: that is for the
    person who reviews, or for a list of datasets that are exempt.

    Args:
        max_position: characters at the beginning that are looked at.
    """

    def check(view: View) -> Finding | None:
        beginning = view.text[:max_position]
        for pattern in _REFUSALS:
            if match := pattern.search(beginning):
                note = f"The answer refuses: {match[0].strip()!r:.80}."
                return Finding(1, 0, *match.span(), note)
        return None

    return over_answers("refusal", check)
