"""Reading text: OCRBench, MTVQA, and any set whose answer has to stand in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internvl.evaluation.metrics.family import (
    Formula,
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    average,
    column,
    marked,
)
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

_FORMULAS = "Handwritten Mathematical Expression Recognition"
_RECOGNITION = "Text Recognition"
_TEXT_KINDS = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)


def ocrbench_hit(category: str, answers: Sequence[str], prediction: str) -> int:
    """OCRBench: 1 if an accepted answer stands in the text, case aside, else 0 (VLMEvalKit).

    In handwritten formulas all blanks go and case stays. An empty reference is in no text.
    """

    def form(text: str) -> str:
        if category == _FORMULAS:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.lower().strip().replace("\n", " ")

    return int(any(form(each) and form(each) in form(prediction) for each in answers))


def mtvqa_hit(prediction: str, answer: str) -> float:
    """MTVQA: 1 if the reference stands in the text, case and full stops aside, else 0."""
    reference, text = (each.strip().lower().replace(".", "") for each in (answer, prediction))
    return float(bool(reference) and reference in text)


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether an accepted answer stands in the text, case and runs of blanks aside."""
    text = " ".join(prediction.casefold().split())
    forms = (" ".join(each.casefold().split()) for each in answers)
    return any(form and form in text for form in forms)


def _read_ocrbench(prediction: Prediction, text: str) -> Mark:
    return marked(ocrbench_hit(column(prediction, "category"), prediction.answers, text), text)


def _read_mtvqa(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    return marked(max(mtvqa_hit(answer, each) for each in prediction.answers), answer)


def _read_contains(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    return marked(contains(answer, prediction.answers), answer)


def _ocrbench_terms(rows: Rows) -> Terms:
    terms = dict(average(rows))
    for prediction, mark in rows:
        if column(prediction, "category") in _TEXT_KINDS:
            add(terms, f"category/{_RECOGNITION}", mark.score, 1.0)
    return terms


def _ocrbench_formula(totals: Mapping[str, float]) -> Formula:
    """Points: as many as there are hits."""
    points = {name: {name: rows} for name, rows in totals.items() if name.startswith("category/")}
    return {"score": {"all": totals["all"]}, **points}


OCRBENCH = Metric(
    "ocrbench",
    "points of 1000",
    "an accepted answer stands in the text; handwritten formulas without blanks (VLMEvalKit); one "
    "point each, the five parts of column `category` added up",
    _read_ocrbench,
    ("category",),
    _ocrbench_terms,
    _ocrbench_formula,
)
MTVQA = Metric(
    "mtvqa",
    "percent",
    "the reference stands in the text, case and full stops aside (VLMEvalKit); over all rows, "
    "parts by language (column `category`)",
    _read_mtvqa,
)
CONTAINMENT = Metric(
    "containment",
    "percent",
    "an accepted answer stands in the text, case and runs of blanks aside; over all rows",
    _read_contains,
)
