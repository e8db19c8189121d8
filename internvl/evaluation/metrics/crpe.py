"""CRPE: relations and existence, each question asked four times with its options shifted."""

from __future__ import annotations

from collections.abc import Sequence

from internvl.evaluation.metrics.family import Mark, Metric, Rows, Terms, column, labels, marked
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

_LINES = 4


def crpe_correct(gold: str, prediction: str) -> bool:
    """Whether a line is right (VLMEvalKit, `is_correct`).

    One character, or a first character A to D, has to be that of the reference `A. yes`; otherwise
    the reference from its fifth character on has to stand in the answer, case aside. A blank answer
    is wrong, and so is any text where the reference is a letter alone.
    """
    if not prediction.strip():
        return False
    if len(prediction) == 1 or prediction[0] in "ABCD":
        return prediction[0] == gold[:1]
    text = gold[4:].lower()
    return bool(text) and text in prediction.lower()


def _read(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    return marked(crpe_correct(prediction.answers[0], answer), answer)


def _fours(predictions: Sequence[Prediction]) -> list[str]:
    """Four rows that follow one another are one question.

    Raises:
        ValueError: an index is no number.
    """
    try:
        indices = [int(column(prediction, "index")) for prediction in predictions]
    except ValueError as error:
        raise ValueError(f"CRPE finds the four copies by their index: {error}.") from None
    first = min(indices, default=0)
    return [str((index - first) // _LINES) for index in indices]


def _terms(rows: Rows) -> Terms:
    categories = {column(prediction, "category") for prediction, _ in rows}
    if len(categories) > 1:
        ids = ", ".join(prediction.id for prediction, _ in rows)
        raise ValueError(
            f"rows {ids} are no question of CRPE, for their categories differ; the four copies of "
            "a question follow one another, so the rows have to be whole and start at the first."
        )
    right = min(mark.score for _, mark in rows)
    terms = dict.fromkeys(("all", *labels(rows[0][0])), (right, 1.0))
    terms["rows"] = (sum(mark.score for _, mark in rows), float(len(rows)))
    return terms


CRPE = Metric(
    "crpe",
    "percent",
    "first letter, or the option's text (VLMEvalKit), and a question is right when its four "
    "circular lines (by `index`) are; the part `rows` counts lines",
    _read,
    ("category",),
    terms=_terms,
    groups=_fours,
)
