"""What can be understood of an LLM's answer: a score of 0-10 or a domain, or why there is none.

Models wrap the JSON that they were asked for in thoughts, fences and prose. Nothing is guessed: two
different scores, or one out of range, are no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from internvl.filtering.prompts import DOMAINS, Domain

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_SCORE = re.compile(r"\bscore\b\W{0,5}(?:is|of)?\W{0,3}(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?", re.I)
# A first line that is a number and nothing else; prose may follow.
_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d+)?)(?:[^\S\n]*/[^\S\n]*(\d+))?[^\S\n]*\.?[^\S\n]*(?:\n|$)")


class Unusable(ValueError):
    """An answer that says nothing that counts."""


@dataclass(frozen=True)
class Scored:
    """A score and the reason that was given for it."""

    score: float
    reason: str = ""


def read_score(text: str) -> Scored:
    """The score of an answer.

    Raises:
        Unusable: there is none, there are several, or it is not within 0 to 10.
    """
    text = _without_thoughts(text)
    for value in _objects(text):
        if "score" in value:
            return Scored(_in_range(value["score"]), str(value.get("reason", "")))
    found = _SCORE.findall(text)
    if not found and (alone := _NUMBER.match(text)):
        found = [alone.groups(default="")]
    scores = {_in_range(number, of) for number, of in found}
    if len(scores) != 1:
        raise Unusable(f"The answer holds {len(scores) or 'no'} scores; expected one.")
    return Scored(scores.pop(), " ".join(text.split())[:300])


def read_domain(text: str) -> Domain:
    """The domain of an answer.

    Raises:
        Unusable: none or several are named.
    """
    text = _without_thoughts(text)
    for value in _objects(text):
        if value.get("domain") in DOMAINS:
            found: Domain = value["domain"]
            return found
    named = [domain for domain in DOMAINS if re.search(rf"\b{domain}\b", text, re.I)]
    if len(named) != 1:
        raise Unusable(f"The answer names {len(named) or 'no'} domains of {list(DOMAINS)}.")
    return named[0]


def _without_thoughts(text: str) -> str:
    """The answer proper; thoughts that were cut off leave nothing."""
    text = _THOUGHTS.sub("", text)
    return re.sub(r"<think(?:ing)?>.*", "", text, flags=re.DOTALL)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, in order."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value
        place = text.find("{", end)


def _in_range(number: Any, of: str = "") -> float:
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Unusable("The score is no number.")
    if of not in ("", "10"):
        raise Unusable(f"The score is out of {of}; expected one out of 10.")
    if not 0 <= number <= 10:  # NaN too
        raise Unusable(f"The score is {number:g}; expected 0 to 10.")
    return float(number)
