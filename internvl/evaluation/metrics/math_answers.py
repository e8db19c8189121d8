r"""MathVista, MATH-Vision and MathVerse: short answers to questions about figures.

The peers have a language model find the answer in the text. Here it is the last `\boxed{}` (which
the prompt of Figure 9 asks for), what follows "Answer:", or a text of one line; anything else
counts as unparsed, so a model that ignores the format scores lower than with a judge.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from internvl.answers import extract_answer, extract_number, is_same, normalize_answer
from internvl.evaluation.metrics import latex
from internvl.evaluation.metrics.choices import chosen_letter
from internvl.evaluation.metrics.family import (
    UNPARSED,
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    average,
    column,
    marked,
)
from internvl.evaluation.metrics.text import edit_distance
from internvl.evaluation.records import Prediction

_ONE_MILLIONTH = 1e-6
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_VERSION = "problem_version"


# ---------------------------------------------------------------------- equality
def math_equal(
    answer: str, reference: str, *, peer: Literal["vlmevalkit", "official"] = "vlmevalkit"
) -> bool:
    r"""Whether two mathematical answers are the same.

    First as texts (`internvl.answers.normalize_answer`: `$`, `\text{}`, `1/2` and `0.5`), then as
    numbers, LaTeX or not. An empty answer never is.

    Args:
        answer: of the model.
        reference: the right one.
        peer: how near numbers have to be. "vlmevalkit": closer than 1e-6. "official" (MATH-Vision,
            utils.py): equal when rounded to two decimals.
    """
    if not answer.strip() or not reference.strip():
        return False
    if answer.strip().lower() == reference.strip().lower() or is_same(answer, reference):
        return True
    values = [_value(text) for text in (answer, reference)]
    if values[0] is None or values[1] is None:
        return False
    if peer == "official":
        return round(values[0].real, 2) == round(values[1].real, 2)
    return abs(values[0] - values[1]) < _ONE_MILLIONTH


def _value(text: str) -> complex | None:
    form = normalize_answer(text)
    try:
        return complex(float(Fraction(form)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return latex.value(latex.parse(text.strip().strip("$")))


# ---------------------------------------------------------------------- MathVista
def normalize_extracted_answer(
    extraction: str,
    choices: Sequence[str] | None,
    question_type: str,
    answer_type: str,
    precision: int | float | None,
) -> str | None:
    """Bring an answer into the form of MathVista's references (official calculate_score.py).

    Args:
        extraction: the answer, without the text around it.
        choices: texts of the options, for "multi_choice".
        question_type: "multi_choice" or "free_form".
        answer_type: "text", "integer", "float" or "list".
        precision: decimals of a float.

    Returns:
        The text of the option: that of a letter, or else the nearest by edit distance. An integer,
        cut off; a float, rounded; a list as it is. None if it is no such number, or empty.
    """
    extraction = extraction.strip()
    if not extraction:
        return None
    if question_type == "multi_choice":
        return _option(extraction, list(choices or ()))
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), int(precision if precision is not None else 0)))
    except (ValueError, OverflowError):
        return None
    return extraction


def _option(extraction: str, choices: Sequence[str]) -> str | None:
    if not choices:
        return None
    if bracketed := _BRACKETED.search(extraction):
        extraction = bracketed[1].upper()
    place = _LETTERS.find(extraction) if len(extraction) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    return min(choices, key=lambda choice: edit_distance(extraction, choice))


def _found(text: str) -> str | None:
    """The answer of a text, or None where only a judge could tell it."""
    one_line = len(text.strip().splitlines()) == 1 and len(text.split()) <= 12
    answer = extract_answer(text, "text")
    return answer if one_line or answer != text.strip().splitlines()[-1].strip() else None


def _extraction(prediction: Prediction, text: str) -> str | None:
    """The answer of a text in the form that `normalize_extracted_answer` takes."""
    if column(prediction, "question_type") == "multi_choice":
        letter = chosen_letter(text, prediction.choices)
        return f"({letter})" if letter else _found(text)
    if column(prediction, "answer_type") not in ("integer", "float"):
        return _found(text)
    number = extract_number(extract_answer(text, "text") or "")
    form = normalize_answer(number).removesuffix("%") if number else ""
    try:
        return repr(float(Fraction(form)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _read_mathvista(prediction: Prediction, text: str) -> Mark:
    extraction = _extraction(prediction, text)
    if extraction is None:
        return UNPARSED
    precision = column(prediction, "precision")
    options = list(prediction.choices.values())
    answer = normalize_extracted_answer(
        extraction,
        options,
        column(prediction, "question_type"),
        column(prediction, "answer_type"),
        None if precision is None else float(precision),
    )
    golds = [prediction.choices.get(each, each) for each in prediction.answers]
    return marked(any(_same_form(answer, each) for each in golds), answer)


def _same_form(answer: str | None, gold: str) -> bool:
    """Equal as text, as the official script has it, or as numbers, as VLMEvalKit compares them."""
    if answer is None:
        return False
    try:
        return answer == gold or float(answer) == float(gold)
    except ValueError:
        return False


def _mathvista_terms(rows: Rows) -> Terms:
    terms = dict(average(rows))
    for prediction, mark in rows:
        for skill in _listed(column(prediction, "skills")):
            add(terms, f"skill/{skill}", mark.score, 1.0)
    return terms


def _listed(cell: object) -> list[str]:
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return [str(cell)]
    if isinstance(cell, (list, tuple)):
        return [str(each) for each in cell]
    return [] if cell is None else [str(cell)]


# ---------------------------------------------------------------------- MATH-Vision, MathVerse
def _right(answer: str, prediction: Prediction, choices: Mapping[str, str]) -> bool:
    """Equal to a reference, or, in MATH-Vision's own rule, to the text of the right option."""
    golds = [*prediction.answers, *(choices[k] for k in prediction.answers if k in choices)]
    return any(math_equal(answer, gold) for gold in golds)


def _read_math(prediction: Prediction, text: str) -> Mark:
    choices = prediction.choices
    if choices:
        letter = chosen_letter(text, choices)
        if letter is not None:
            return marked(letter in prediction.answers, letter)
    answer = _found(text)
    return marked(answer is not None and _right(answer, prediction, choices), answer)


def _read_mathverse(prediction: Prediction, text: str) -> Mark:
    """Options of MathVerse stand in the question, so their letters are all that is known."""
    kind = str(column(prediction, "question_type") or "")
    if not kind.startswith("multi"):
        return _read_math(prediction, text)
    letters = prediction.choices or dict.fromkeys("ABCDEF", "")
    letter = chosen_letter(text, letters)
    return marked(letter is not None and letter in prediction.answers, letter)


def _mathverse_terms(rows: Rows) -> Terms:
    terms = dict(average(rows))
    for prediction, mark in rows:
        if (version := column(prediction, _VERSION)) is not None:
            add(terms, f"{_VERSION}/{version}", mark.score, 1.0)
    return terms


MATHVISTA = Metric(
    "mathvista",
    "percent",
    "answers found by rule, normalised and compared as the official calculate_score.py does "
    "(columns `question_type`, `answer_type`, `precision`); over all rows; a judge finds more",
    _read_mathvista,
    ("question_type", "answer_type"),
    _mathvista_terms,
)
MATHVISION = Metric(
    "mathvision",
    "percent",
    "the letter, else equal as text or as a number within 1e-6 (VLMEvalKit), or to the text of the "
    "right option (official); over all rows",
    _read_math,
)
MATHVERSE = Metric(
    "mathverse",
    "percent",
    "letters and numbers by rule, over all rows; parts by `problem_version`; the report's number "
    "has a judge find and compare the answers, which finds more",
    _read_mathverse,
    terms=_mathverse_terms,
)
