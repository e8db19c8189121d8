"""The evidence of a verdict, with some text around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Excerpt:
    """A part of a turn.

    Attributes:
        turn: its number, from 0.
        before: text before the evidence.
        marked: the evidence, its middle left out if it is long.
        after: text after it.
    """

    turn: int
    before: str
    marked: str
    after: str


def excerpt(
    turns: Sequence[str], span: Mapping[str, Any] | None, *, around: int = 120, most: int = 600
) -> Excerpt | None:
    """Cut the evidence out of the turns; None without a span.

    Args:
        turns: texts.
        span: `turn`, `start` and `end`, as in `Span`.
        around: characters on either side.
        most: characters of the evidence.
    """
    if span is None or not 0 <= span["turn"] < len(turns):
        return None
    text = turns[span["turn"]]
    start, end = span["start"], span["end"]
    left, right = max(0, start - around), end + around
    before = ("\u2026" if left else "") + text[left:start]
    after = text[end:right] + ("\u2026" if right < len(text) else "")
    return Excerpt(span["turn"], before, shortened(text[start:end], most), after)


def shortened(text: str, most: int) -> str:
    """A text without its middle, which is told in characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [\u2026 {len(text) - 2 * half:,} characters \u2026] {text[-half:]}"
