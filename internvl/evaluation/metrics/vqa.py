"""VQA soft accuracy over ten annotators: TextVQA (Antol et al. 2015; MMF's EvalAI processor)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from internvl.evaluation.metrics.family import Mark, Metric, marked
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# Both peers pass `re.UNICODE`, which is 32, where `re.sub` takes the count of replacements.
_MOST_FULL_STOPS = 32
_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't "
    "mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
)


def _with_one_missing() -> dict[str, str]:
    """Contractions, by what is left when one of their apostrophes was forgotten."""
    table = {"somebody'd": "somebodyd"}  # the one entry of the peers that goes the other way
    for word in _CONTRACTIONS.split():
        for place, character in enumerate(word):
            if character == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table


_APOSTROPHES = _with_one_missing()


def normalize_vqa_answer(text: str, *, peer: Literal["official", "vlmevalkit"] = "official") -> str:
    """Bring an answer into the form in which annotators are compared.

    Case, articles and most punctuation go, words from zero to ten become digits, forgotten
    apostrophes come back.

    Args:
        text: the answer.
        peer: "official" (MMF, in textvqa_eval.py) first drops `,` and `?` and splits `'s` off, so
            that "it's" becomes "it 's"; "vlmevalkit" does neither.
    """
    if peer == "official":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).lower().split())
    kept = (word for word in words if word not in _ARTICLES)
    return " ".join(_APOSTROPHES.get(word, word) for word in kept)


def without_punctuation(text: str) -> str:
    """A mark next to a blank goes, any other becomes a blank; all go beside a number like 1,000."""
    bare = text
    for mark in _PUNCTUATION:
        drop = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text)
        bare = bare.replace(mark, "" if drop else " ")
    return _FULL_STOP.sub("", bare, count=_MOST_FULL_STOPS)


def vqa_soft_accuracy(
    prediction: str,
    answers: Sequence[str],
    *,
    peer: Literal["official", "vlmevalkit"] = "official",
) -> float:
    """Share of annotators that an answer agrees with, three of the others being enough.

    The mean over the annotators of min(1, matches among the others / 3). Blank answers score 0.

    Args:
        prediction: the answer.
        answers: one per annotator; ten in TextVQA.
        peer: as in `normalize_vqa_answer`.

    Returns:
        0 to 1.
    """
    if not prediction.strip() or not answers:
        return 0.0
    answer = normalize_vqa_answer(prediction, peer=peer)
    same = [normalize_vqa_answer(each, peer=peer) == answer for each in answers]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def _read(prediction: Prediction, text: str) -> Mark:
    if len(prediction.answers) < 4:  # nobody could score 1
        raise ValueError(
            f"row {prediction.id} has {len(prediction.answers)} reference answer(s); VQA accuracy "
            "is over those of ten annotators (column `answers`), and needs four at least."
        )
    answer = final(text)
    return marked(vqa_soft_accuracy(answer, prediction.answers), answer)


VQA_SOFT = Metric(
    "vqa_soft",
    "percent",
    "VQA soft accuracy over the ten annotators (official MMF processor)",
    _read,
)
