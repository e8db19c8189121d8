"""How well an answer can be compressed: what repeats takes no room.

A long text compresses better than a short one, since there is more to refer to, so the limit grows
with the length. Measured on prose of 500 to 50,000 bytes (docstrings of Python's standard library
and the prose of benchmarks/filter_texts.py) the ratio stays below 1.6 + 0.35 log2(bytes / 250); the
limit is above that, and the loops of Figure 6 reach twice as much.
"""

from __future__ import annotations

import math
import zlib

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.near_loops import enumerates
from internvl.filtering.rules.text import View
from internvl.filtering.verdict import Rule


def limit_for(size: int) -> float:
    """Highest ratio of prose of a size in bytes."""
    return 2.6 + 0.4 * math.log2(max(size, 500) / 500)


def compression(*, min_bytes: int = 400, slack: float = 1.0, structure_ratio: float = 40.0) -> Rule:
    """An answer whose prose compresses better than prose does.

    Args:
        min_bytes: of an answer that is looked at, in UTF-8.
        slack: factor on the limit of prose.
        structure_ratio: limit of an answer that is mostly structure: tables of zeros reach 30.
    """

    def check(view: View) -> Finding | None:
        data = view.text.encode("utf-8", "replace")
        if len(data) < min_bytes or view.asked_times:
            return None
        # The whole first: structures are looked for only in what compresses well.
        ratio = len(data) / len(zlib.compress(data, 6))
        if ratio <= limit_for(len(data)) * slack:
            return None
        if ratio > structure_ratio and len(data) > 4000:
            return _finding(view, ratio, structure_ratio)
        prose = " ".join(view.prose.split()).encode("utf-8", "replace")
        if len(prose) < min_bytes:
            return None
        ratio = len(prose) / len(zlib.compress(prose, 6))
        limit = limit_for(len(prose)) * slack
        if ratio <= limit or enumerates(view):
            return None
        return _finding(view, ratio, round(limit, 2))

    return over_answers("compression", check)


def _finding(view: View, ratio: float, limit: float) -> Finding:
    note = f"It is {ratio:.1f} times as long as its zlib form; prose stays below {limit:.1f}."
    return Finding(ratio, limit, 0, len(view.text), note)
