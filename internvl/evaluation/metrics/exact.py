"""Equality, for data sets of one's own."""

from __future__ import annotations

from internvl.answers import extract_answer, is_same
from internvl.evaluation.metrics.family import Mark, Metric, marked
from internvl.evaluation.records import Prediction


def _read(prediction: Prediction, text: str) -> Mark:
    answer = extract_answer(text, "text")
    return marked(any(is_same(answer, each) for each in prediction.answers), answer)


EXACT = Metric(
    "exact",
    "percent",
    "the answer (boxed, after `Answer:`, or the last line) equals a reference in the form of "
    "internvl.answers.normalize_answer; over all rows",
    _read,
)
