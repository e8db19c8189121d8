"""Relaxed accuracy: ChartQA (Masry et al. 2022, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from internvl.evaluation.metrics.family import Mark, Metric, marked, mean_of
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction


def relaxed_correctness(target: str, prediction: str, max_relative_change: float = 0.05) -> bool:
    """Whether two numbers differ by at most 5 % of the first, or two texts not at all, case aside.

    `10%` is 0.1; thousands separators make a text of a number. A target of 0 is compared as text.
    """
    reference, value = _number(target), _number(prediction)
    if value is not None and reference:
        return abs(value - reference) / abs(reference) <= max_relative_change
    return prediction.lower() == target.lower()


def relaxed_accuracy(
    prediction: str,
    answers: Sequence[str],
    *,
    peer: Literal["vlmevalkit", "official"] = "vlmevalkit",
) -> float:
    """1 if an answer is right within 5 %, else 0; a blank one is 0.

    Args:
        prediction: the answer.
        answers: those accepted.
        peer: "vlmevalkit" takes the 5 % of the reference, as the paper says. "official"
            (evaluate_vqa.py) hands the two over in the other order, so that they are 5 % of the
            prediction: 95 for 100 is wrong there, 100 for 95 is right.
    """
    prediction = prediction.strip()
    if not prediction:
        return 0.0
    swap = peer == "official"
    pairs = ((prediction, each) if swap else (each, prediction) for each in answers)
    return float(any(relaxed_correctness(*pair) for pair in pairs))


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _read(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    return marked(relaxed_accuracy(answer, prediction.answers), answer)


RELAXED_ACCURACY = Metric(
    "relaxed_accuracy",
    "percent",
    "within 5 % of the reference, or equal text (VLMEvalKit); mean of the splits human and "
    "augmented, column `split`",
    _read,
    formula=mean_of("split"),
)
