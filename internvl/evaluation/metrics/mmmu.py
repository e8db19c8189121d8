"""MMMU and MMMU-Pro: letters, and the official rules for open answers (MMMU, eval_utils.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from internvl.answers import extract_answer, extract_choice
from internvl.evaluation.metrics.choices import chosen_letter, right_letters
from internvl.evaluation.metrics.family import Mark, Metric, marked, mean_of
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def parse_open_response(text: str) -> list[str | float]:
    """What an open answer may mean: the ends of its key sentences, and the numbers in them.

    A key sentence is a line with "is ", "so ", "answer " and the like, in the last line also "=";
    what follows the last of these is kept. Without any the whole text is. Numbers are rounded to
    two decimals, text is lowered, and a single letter gets a blank before or after.

    Returns:
        Distinct candidates, in the order found.
    """
    keys = _key_answers(text)
    found = [*keys]
    for key in keys:
        for pattern in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE):
            found += pattern.findall(key)
    return list(dict.fromkeys(form for each in found for form in _normalized(each)))


def _key_answers(text: str) -> list[str]:
    whole = text.strip().strip(".").lower()
    # The official pattern also splits before a capital after a full stop, but in lowered text.
    lines = whole.split("\n")
    keys = []
    for number, line in enumerate(lines, 1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in line:
                tail = line.rpartition(indicator)[2].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    return keys or [whole]


def _normalized(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def eval_open(answers: str | Sequence[str], candidates: Sequence[str | float]) -> bool:
    """Whether a candidate of `parse_open_response` is right: a number equal to a reference, or a
    text that holds one. A reference without any character is in no text."""
    references = [answers] if isinstance(answers, str) else answers
    forms = [form for each in references for form in _normalized(each)]
    for candidate in candidates:
        if isinstance(candidate, str):
            if any(isinstance(form, str) and form and form in candidate for form in forms):
                return True
        elif candidate in forms:
            return True
    return False


def _read(prediction: Prediction, text: str) -> Mark:
    if prediction.choices:
        letter = chosen_letter(text, prediction.choices)
        return marked(letter in right_letters(prediction), letter)
    answer = final(text)
    if not answer:
        return marked(False, None)
    right = eval_open(prediction.answers, parse_open_response(answer))
    return marked(right, _key_answers(answer)[-1])


def _read_pro(prediction: Prediction, text: str) -> Mark:
    choices = prediction.choices
    if not choices:
        raise ValueError(
            f"row {prediction.id} has no options; in MMMU-Pro every row has, in the vision setting "
            "too (column `options`), and the rule needs their letters."
        )
    letter = extract_choice(text, choices, peer="mmmu_pro")
    letter = letter or extract_answer(text, "choice", choices)
    return marked(letter in right_letters(prediction), letter)


MMMU = Metric(
    "mmmu",
    "percent",
    "letters as `choice`; open answers by the official parse_open_response and eval_open; over all "
    "rows",
    _read,
)
MMMU_PRO = Metric(
    "mmmu_pro",
    "percent",
    "the only letter after `Answer:`, else the last one named (official evaluate.py, without its "
    "random guess); the mean over settings (column `setting`: standard and vision)",
    _read_pro,
    formula=mean_of("setting"),
)
