"""Multiple choice: plain, circular, by tasks, and the rules of single benchmarks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from internvl.answers import extract_answer, extract_boxed, extract_choice, is_same
from internvl.evaluation.metrics.family import (
    PARTS,
    Formula,
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    average,
    column,
    labels,
    marked,
    mean_of,
    percentages,
)
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

logger = logging.getLogger(__name__)

_CIRCLE = 1_000_000
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",  # sic: a comma is missing in the official script
    "Best answer:Best option:",
)


def chosen_letter(text: str, choices: Mapping[str, str]) -> str | None:
    r"""The option that a text chooses: VLMEvalKit's rule on the last `\boxed{}` or the whole text.

    Where that rule is undecided (there the judge is asked), the letter after the last `Answer:`
    or "answer is". Never a guess.
    """
    found = extract_choice(extract_boxed(text), choices, peer="vlmevalkit")
    return found or extract_answer(text, "choice", choices)


def right_letters(prediction: Prediction) -> set[str]:
    """The letters of the right options.

    Raises:
        ValueError: the reference is none of the options, so that every answer would be wrong.
    """
    letters = {each.strip().upper() for each in prediction.answers}
    if letters and prediction.choices and letters.isdisjoint(prediction.choices):
        raise ValueError(
            f"row {prediction.id}: the reference {sorted(letters)} is none of the options "
            f"{dict(prediction.choices)}; expected one of their letters, or its text."
        )
    return letters


def _is_right(letter: str | None, prediction: Prediction) -> bool:
    return letter in right_letters(prediction)


def _read(prediction: Prediction, text: str) -> Mark:
    if not prediction.choices:  # an open question among them: RealWorldQA has some
        answer = final(text)
        return marked(any(is_same(answer, each) for each in prediction.answers), answer)
    letter = chosen_letter(text, prediction.choices)
    return marked(_is_right(letter, prediction), letter)


# ---------------------------------------------------------------------- circular
def circle_of(prediction: Prediction) -> int:
    """Which question a row is a shifted copy of: `g_index`, or `index` modulo 1,000,000.

    Raises:
        ValueError: the index is no number.
    """
    index = column(prediction, "g_index", "index")
    try:
        return int(index) % _CIRCLE
    except ValueError:
        raise ValueError(
            f"row {prediction.id}: the index {index!r} is no number; the copies of a circular "
            "question are found by their index modulo 1,000,000, as in VLMEvalKit."
        ) from None


def _circles(predictions: Sequence[Prediction]) -> list[str]:
    return [str(circle_of(prediction)) for prediction in predictions]


def _circular_terms(rows: Rows) -> Terms:
    """A question is right when all its shifted copies are; its labels are those of the first."""
    first = rows[0][0]
    if len(rows) < len(first.choices):
        logger.warning(
            "Question %d has %d of its %d shifted copies, so it is easier than it should be.",
            *(circle_of(first), len(rows), len(first.choices)),
        )
    right = min(mark.score for _, mark in rows)
    terms = dict.fromkeys(("all", *labels(first)), (right, 1.0))
    terms["rows"] = (sum(mark.score for _, mark in rows), float(len(rows)))
    return terms


# ---------------------------------------------------------------------- single benchmarks
def first_letter(text: str, choices: Mapping[str, str]) -> str | None:
    """MME-RealWorld: the first capital that is an option, after phrases such as "The answer is".

    Without one, the first option whose text holds the whole answer. The official script gives the
    first option to an empty answer; here that is none.

    Args:
        text: the answer.
        choices: letter -> text, A to E in MME-RealWorld.
    """
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    text = text.strip()
    if found := re.search(f"[{''.join(choices)}]", text):
        return found[0]
    if len(text.split()) > 10 or not any(character.isalnum() for character in text):
        return None
    lowered = text.lower()
    holding = (k for k, option in choices.items() if lowered in f"({k}) {option}".lower())
    return next(holding, None)


def _read_first_letter(prediction: Prediction, text: str) -> Mark:
    choices = prediction.choices or dict.fromkeys("ABCDE", "")
    letter = first_letter(extract_boxed(text), choices)
    return marked(_is_right(letter, prediction), letter)


def _slashed_terms(rows: Rows) -> Terms:
    """`Perception/OCR with Complex Context` counts for Perception too."""
    terms = dict(average(rows))
    for prediction, mark in rows:
        area, slash, _ = str(column(prediction, "category")).partition("/")
        if slash:
            add(terms, f"category/{area}", mark.score, 1.0)
    return terms


def _mmt_terms(rows: Rows) -> Terms:
    terms: dict[str, tuple[float, float]] = {}
    for prediction, mark in rows:
        kind, task = (prediction.fields.get(name) for name in ("l2-category", "category"))
        names = labels(prediction, [name for name in PARTS if name != "l2-category"])
        if kind is not None:
            names.append(f"l2-category/{kind}/{task}")
        for name in ("all", *names):
            add(terms, name, mark.score, 1.0)
    return terms


def _mmt_formula(totals: Mapping[str, float]) -> Formula:
    kinds: dict[str, list[str]] = {}
    for name in totals:
        if name.startswith("l2-category/"):
            kinds.setdefault(name.rpartition("/")[0], []).append(name)
    plain = {k: v for k, v in percentages(totals).items() if not k.startswith("l2-category/")}
    return plain | {k: dict.fromkeys(names, 100.0 / len(names)) for k, names in kinds.items()}


def mantis_answer(text: str, choices: Mapping[str, str]) -> str:
    """Mantis-Eval: `(B)` and the text of option B become `B`, anything else stays as it is."""
    text = text.strip()
    if len(text) == 3 and text[0] == "(" and text[2] == ")":
        text = text[1]
    for letter, option in choices.items():
        if text in (letter, option, f"({letter}) {option}"):
            return letter
    return text


def _read_mantis(prediction: Prediction, text: str) -> Mark:
    text = final(text)
    if column(prediction, "question_type") == "short-answer" or not prediction.choices:
        same = any(text.lower() == each.lower() for each in prediction.answers)
        return marked(same, text)
    answer = mantis_answer(text, prediction.choices)
    return marked(_is_right(answer, prediction), answer)


def mmiu_answer(text: str, choices: Mapping[str, str]) -> str:
    """MMIU: one character as it is, else a first character that is an option, else the first option
    whose text stands in the answer, else the answer. (evaluate_mmiu.py; no option is empty)"""
    text = text.strip()
    if len(text) > 1:
        if text[0] in choices:
            return text[0]
        inside = (letter for letter, option in choices.items() if option and option in text)
        return next(inside, text)
    return text


def _read_mmiu(prediction: Prediction, text: str) -> Mark:
    answer = mmiu_answer(extract_boxed(text), prediction.choices)
    return marked(_is_right(answer, prediction), answer)


CHOICE = Metric(
    "choice",
    "percent",
    "the letter chosen (VLMEvalKit's rule; undecided is wrong, never a guess), over all rows",
    _read,
)
CHOICE_MACRO = Metric(
    "choice_macro",
    "percent",
    "as `choice`; the mean over tasks (column `task_type`, `task` or `category`)",
    _read,
    formula=mean_of("task_type", "task", "category"),
)
CIRCULAR = Metric(
    "circular",
    "percent",
    "as `choice`, and a question is right when all its shifted copies are (same `index` modulo "
    "1,000,000); the part `rows` counts copies",
    _read,
    terms=_circular_terms,
    groups=_circles,
)
MMT = Metric(
    "mmt",
    "percent",
    "as `choice`, over all rows; an l2-category is the mean of its categories (VLMEvalKit)",
    _read,
    terms=_mmt_terms,
    formula=_mmt_formula,
)
MME_REALWORLD = Metric(
    "mme_realworld",
    "percent",
    "the first capital A to E of the answer (official rule, empty is wrong), over all rows; "
    "Perception and Reasoning are read from `category`",
    _read_first_letter,
    terms=_slashed_terms,
)
MANTIS = Metric(
    "mantis",
    "percent",
    "equal to the letter or to the option's text; short answers equal, case aside (official "
    "evaluate_mantis.py); over all rows",
    _read_mantis,
)
MMIU = Metric(
    "mmiu",
    "percent",
    "the first character, or the first option named (official evaluate_mmiu.py); the mean over "
    "tasks (column `task` or `category`)",
    _read_mmiu,
    formula=mean_of("task", "category"),
)
