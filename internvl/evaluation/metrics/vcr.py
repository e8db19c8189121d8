"""VCR, visual caption restoration: how well the covered words were read (Zhang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache

from internvl.evaluation.metrics.family import UNPARSED, Mark, Metric, Rows, Terms, add
from internvl.evaluation.records import Prediction

_REFUSALS = ("I can't", "I cannot", "\u65e0\u6cd5", "\u62b1\u6b49")
_SPEAKER = "Assistant: "


@dataclass(frozen=True)
class Blank:
    """How one covered stretch of words was restored.

    Attributes:
        exact_match: 1.0 if the words are all there, in order, else 0.0.
        jaccard: |found and covered| / |found or covered|, over distinct words.
        precision: share of the found words that are covered ones.
        recall: share of the covered words that were found.
        max_sim_string: the stretch of the answer that comes nearest; "" when none shares a word.
    """

    exact_match: float = 0.0
    jaccard: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    max_sim_string: str = ""


def vcr_score(
    prediction: str,
    answers: Sequence[str],
    *,
    tokenize: Callable[[str], list[str]] | None = None,
) -> list[Blank]:
    """Score each covered stretch against the nearest run of as many words of the answer.

    Nearest by difflib's ratio, the first of equals. A refusal scores 0 everywhere. (VLMEvalKit,
    `find_best_match`; English)

    Args:
        prediction: the answer.
        answers: the covered stretches, in order.
        tokenize: text to words; spaCy's rules for English when None.

    Raises:
        ImportError: spaCy is needed and not installed.
    """
    text = prediction.split(_SPEAKER)[-1]
    if any(refusal in text for refusal in _REFUSALS) or "sorry" in text.lower():
        return [Blank() for _ in answers]
    split = tokenize or _english()
    words = split(text)
    return [_blank(words, split(answer), answer) for answer in answers]


def _blank(words: Sequence[str], covered: Sequence[str], answer: str) -> Blank:
    wanted = set(covered)
    best, nearest, string = 0.0, list[str](), ""
    for start in range(len(words) - len(covered) + 1):
        run = words[start : start + len(covered)]
        if wanted.isdisjoint(run):
            continue
        joined = " ".join(run)
        ratio = SequenceMatcher(None, joined, answer).ratio()
        if ratio > best:
            best, nearest, string = ratio, list(run), joined
    if not nearest:
        return Blank()
    found = set(nearest)
    shared = len(found & wanted)
    return Blank(
        exact_match=float(nearest == list(covered)),
        jaccard=shared / len(found | wanted),
        precision=shared / len(found),
        recall=shared / len(wanted),
        max_sim_string=string,
    )


@cache
def _english() -> Callable[[str], list[str]]:
    """spaCy's tokenizer for English: rules only, those of the model that the benchmark names."""
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            "VCR splits text into words as spaCy does: pip install 'internvl[vcr]'."
        ) from error
    tokenizer = spacy.blank("en").tokenizer
    return lambda text: [token.text for token in tokenizer(text)]


def _read(prediction: Prediction, text: str) -> Mark:
    blanks = vcr_score(text, prediction.answers)
    if not any(blank.max_sim_string for blank in blanks):
        return UNPARSED
    count = len(blanks)
    jaccard = sum(blank.jaccard for blank in blanks) / count
    parsed = " / ".join(blank.max_sim_string for blank in blanks)
    exact = sum(blank.exact_match for blank in blanks) / count
    return Mark(exact, parsed, {"jaccard": jaccard})


def _terms(rows: Rows) -> Terms:
    """Means over covered stretches, not over pictures."""
    terms: dict[str, tuple[float, float]] = {}
    for prediction, mark in rows:
        count = len(prediction.answers)
        add(terms, "all", mark.score * count, count)
        add(terms, "jaccard", mark.values.get("jaccard", 0.0) * count, count)
    return terms


VCR = Metric(
    "vcr",
    "percent",
    "exact match of the nearest run of words, mean over covered stretches (the answers of a row, "
    "all of them wanted); words as spaCy splits English (VLMEvalKit)",
    _read,
    terms=_terms,
)
