r"""Loops with small changes (report Figure 6, third example: the circumcenter of one triangle after
another).

    sentences -> groups that share most of their tokens -> how many of a group bring a new token

An enumeration has the same form: "The capital of Peru is Lima. The capital of Chile is ...". Each
of its sentences brings something that none before it had. In a loop they only mix what was there.
Sentences that do nothing but count up ("Step 31: ...") are new in this sense; a long series of
them in one form is flagged by its length.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from internvl.filtering.rules.family import Finding, over_answers
from internvl.filtering.rules.text import CJK, Piece, View, lower, weight
from internvl.filtering.verdict import Rule

# In a formula every sign counts; names of points stay in one piece.
_TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SHORTEST = 24  # weight of a sentence that is looked at
# Shared part of the tokens of two sentences that have one form. An enumeration may differ in more.
_SIMILAR, _SIMILAR_CJK, _LISTED = 0.6, 0.5, 0.4
# Below this share of repeated trigrams no group is large enough.
_REPEATED_SHARE = 0.2
# "Step 3: ...", "Object 3 is ...", "3. ...": a sentence that begins a numbered step.
_NUMBERED = re.compile(r"\W*([^\W\d]*)\s*(\d{1,3})(?!\.?\d)")
_FEWEST_STEPS, _MOST_STEPS = 3, 60


@dataclass
class Group:
    """Sentences of one form.

    Attributes:
        form: tokens of its first sentence.
        seen: tokens of all of them.
        pieces: the sentences.
        texts: the sentences in lower case.
        skeletons: the same without numbers.
        stale: how many brought no new token.
    """

    form: frozenset[str]
    seen: set[str]
    pieces: list[Piece] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    skeletons: set[str] = field(default_factory=set)
    stale: int = 0

    @property
    def equal(self) -> int:
        """How many are equal to an earlier one."""
        return len(self.pieces) - len(self.texts)

    @property
    def weight(self) -> int:
        """Of all of them."""
        return sum(weight(piece.text) for piece in self.pieces)

    def add(self, piece: Piece, tokens: frozenset[str]) -> None:
        """Take one more sentence."""
        if self.pieces and tokens <= self.seen:
            self.stale += 1
        self.seen |= tokens
        self.pieces.append(piece)
        self.texts.add(lower(piece.text))
        self.skeletons.add(_NUMBER.sub("#", lower(piece.text)))


def near_loop(
    *,
    min_share: float = 0.3,
    min_stale: float = 0.5,
    min_sentences: int = 4,
    min_stale_varied: float = 0.6,
    min_varied: int = 6,
    min_counting: int = 20,
) -> Rule:
    """Sentences of one form that bring nothing new.

    Args:
        min_share: part of the answer's weight that they take.
        min_stale: part of them whose tokens all stood in earlier ones, when one of them is
            equal to another.
        min_sentences: how many there are at least, then.
        min_stale_varied: that part when no two are equal: cases and truth values in words combine
            the same few tokens.
        min_varied: how many there are at least, then.
        min_counting: how many differ in numbers only.
    """

    def check(view: View) -> Finding | None:
        if view.repeated_share < _REPEATED_SHARE or goes_in_steps(view):
            return None
        total = sum(weight(piece.text) for piece in view.sentences)
        for group in groups(view, _SIMILAR_CJK if view.mostly_cjk else _SIMILAR):
            count = len(group.pieces)
            share = group.weight / total
            if share < min_share or count <= view.asked_times + 1:
                continue
            stale = group.stale / count
            least, fewest = min_stale, min_sentences
            if not group.equal:
                least, fewest = min_stale_varied, min_varied
            if stale >= least and count >= fewest:
                return _found(group, stale, least, f"{group.stale} of them say nothing new")
            if count >= min_counting and len(group.skeletons) == 1 and share >= 0.5:
                return _found(group, count, min_counting, "only their numbers differ")
        return None

    return over_answers("near_loop", check)


def enumerates(view: View, *, min_share: float = 0.5, max_sentences: int = 60) -> bool:
    """Whether most of the prose is an enumeration: sentences of one form, no two of them equal, or
    numbered steps.

    Its n-grams repeat, and it compresses well, without anything being wrong.

    Args:
        view: the text.
        min_share: part of its weight.
        max_sentences: more of one form are hardly written on purpose.
    """
    if goes_in_steps(view):
        return True
    total = sum(weight(piece.text) for piece in view.sentences)
    listed = [group for group in groups(view, _LISTED) if 3 <= len(group.pieces) <= max_sentences]
    return sum(group.weight for group in listed if not group.equal) >= min_share * total


def goes_in_steps(view: View, *, min_share: float = 0.6, min_distinct: float = 0.7) -> bool:
    """Whether most of the prose is in numbered steps that differ: a chain of thought that goes
    through the objects of a picture says "It is not red." of many of them.

    Args:
        view: the text.
        min_share: part of its weight that is in steps 1, 2, 3 ...
        min_distinct: part of the steps that no other one is equal to, their numbers aside.
    """
    steps: list[list[str]] = []
    word = ""
    for piece in view.sentences:
        found = _NUMBERED.match(piece.text)
        if found and int(found[2]) == len(steps) + 1 and (not steps or found[1] == word):
            word = found[1]
            steps.append([piece.text[found.end() :]])
        elif steps:
            steps[-1].append(piece.text)
    if not _FEWEST_STEPS <= len(steps) <= _MOST_STEPS:
        return False
    texts = [lower(" ".join(step)) for step in steps]
    total = sum(weight(piece.text) for piece in view.sentences)
    longest = sorted(weight(text) for text in texts)[len(texts) // 2]
    # What follows the last step belongs to it here: a loop there is no part of the steps.
    inside = sum(min(weight(text), 2 * longest) for text in texts)
    return len(set(texts)) >= min_distinct * len(texts) and inside >= min_share * total


def groups(view: View, similar: float) -> list[Group]:
    """Each sentence goes to the first group whose form it shares, of so large a part."""
    found: list[Group] = []
    for piece in view.sentences:
        if weight(piece.text) < _SHORTEST:
            continue
        tokens = _tokens(piece.text, cjk=view.mostly_cjk)
        for group in found:
            shared = len(group.form & tokens)
            if shared >= similar * (len(group.form) + len(tokens) - shared):
                group.add(piece, tokens)
                break
        else:
            found.append(Group(tokens, set()))
            found[-1].add(piece, tokens)
    return found


def _tokens(text: str, *, cjk: bool) -> frozenset[str]:
    """Tokens of a sentence; pairs of neighbours in Chinese, where one character says little."""
    found = _TOKEN.findall(lower(text))
    if cjk:
        return frozenset([a + b for a, b in itertools.pairwise(found)] or found)
    return frozenset(found)


def _found(group: Group, score: float, threshold: float, what: str) -> Finding:
    first = group.pieces[0]
    note = f"{len(group.pieces)} sentences are like {first.text!r:.80}; {what}."
    return Finding(score, threshold, first.start, group.pieces[-1].end, note)
