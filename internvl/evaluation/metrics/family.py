"""What a metric is: how one answer is marked, and how marks become the numbers of a benchmark.

    text -> Metric.mark -> Mark -> terms of its group -> ratios -> formula -> {"score": ..., parts}

Every headline of the report is a weighted sum of ratios of sums: an accuracy is one ratio, a mean
of splits several, an F1 is 2 TP / (2 TP + FP + FN), the sum of MME has 28. So a metric says what a
group of rows adds to numerator and denominator of each ratio, and how the ratios make the parts.
Rows that are judged together are one group (a circular set, the two questions about a picture);
groups are what `statistics.py` resamples and pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from internvl.evaluation.records import Prediction

# G groups    K ratios

# A row of a predictions file with what its answer is worth; the rows of one group.
Rows = Sequence[tuple[Prediction, "Mark"]]
# Name of a ratio -> what a group adds to its numerator and to its denominator.
Terms = Mapping[str, tuple[float, float]]
# Part of the summary -> name of a ratio -> its weight. "score" is the headline.
Formula = Mapping[str, Mapping[str, float]]

# Columns by which benchmarks break their scores down (names of VLMEvalKit's TSVs).
PARTS = (
    "split",
    "setting",
    "category",
    "l2-category",
    "task",
    "task_type",
    "question_type",
    "duration",
)


@dataclass(frozen=True)
class Mark:
    """What one answer is worth.

    Attributes:
        score: 0 to 1.
        parsed: the answer that was found in the text, which votes compare; None when there is
            none, and then the score is 0.
        values: whatever else the metric measures of the answer (`iou`, `jaccard`).

    Raises:
        ValueError: a score outside 0..1, or one above 0 for an answer that is empty.
    """

    score: float
    parsed: str | None
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:  # also NaN
            raise ValueError(f"a mark is {self.score}; expected 0 to 1, so the metric is at fault.")
        if self.score and (self.parsed is None or not self.parsed.strip()):
            raise ValueError(
                f"an empty answer got the mark {self.score}; it never scores, so the metric is at "
                "fault."
            )


UNPARSED = Mark(0.0, None)


def marked(right: float | bool, parsed: str | None, **values: float) -> Mark:
    """A mark, or `UNPARSED` when no answer was found."""
    if parsed is None or not parsed.strip():
        return UNPARSED
    return Mark(float(right), parsed, values)


@dataclass(frozen=True)
class Tally:
    """What each group adds to each ratio.

    Attributes:
        groups: names, (G,).
        ratios: names, (K,).
        numerators: (G, K) float64.
        denominators: (G, K) float64.
    """

    groups: tuple[str, ...]
    ratios: tuple[str, ...]
    numerators: np.ndarray
    denominators: np.ndarray

    def totals(self) -> dict[str, float]:
        """Name of a ratio -> its whole denominator."""
        return dict(zip(self.ratios, self.denominators.sum(0).tolist(), strict=True))

    def values(self) -> dict[str, float]:
        """Name of a ratio -> its value; 0 for 0 / 0 (an F1 without any yes), as VLMEvalKit has."""
        above, below = self.numerators.sum(0), self.denominators.sum(0)
        quotients = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return dict(zip(self.ratios, quotients.tolist(), strict=True))


# ---------------------------------------------------------------------- the usual pieces
def column(prediction: Prediction, *names: str) -> Any:
    """The first of some columns that a row has, or None; `index` is also its id."""
    for name in names:
        if (value := prediction.fields.get(name)) is not None:
            return value
    return prediction.id if "index" in names else None


def by_id(predictions: Sequence[Prediction]) -> list[str]:
    """Every row is a group of its own."""
    return [prediction.id for prediction in predictions]


def given_answers(prediction: Prediction) -> tuple[str, ...]:
    """The accepted answers of a row."""
    return prediction.answers


def labels(prediction: Prediction, names: Sequence[str] = PARTS) -> list[str]:
    """`category/OCR` for every column of `names` that a row has."""
    found = ((name, prediction.fields.get(name)) for name in names)
    return [f"{name}/{value}" for name, value in found if value is not None and value != ""]


def add(terms: dict[str, tuple[float, float]], name: str, above: float, below: float) -> None:
    """Add to numerator and denominator of a ratio."""
    old_above, old_below = terms.get(name, (0.0, 0.0))
    terms[name] = (old_above + above, old_below + below)


def average(rows: Rows) -> Terms:
    """The mean mark of all rows, and of each value of the columns `PARTS`."""
    terms: dict[str, tuple[float, float]] = {}
    for prediction, mark in rows:
        for name in ("all", *labels(prediction)):
            add(terms, name, mark.score, 1.0)
    return terms


def percentages(totals: Mapping[str, float]) -> Formula:
    """The headline is the ratio "all", the others are parts, all in per cent."""
    parts = {name: {name: 100.0} for name in totals if name != "all"}
    return {"score": {"all": 100.0}, **parts}


def mean_of(*names: str) -> Callable[[Mapping[str, float]], Formula]:
    """The headline is the mean over the values of a column: the first that the rows have."""

    def formula(totals: Mapping[str, float]) -> Formula:
        parts = dict(percentages(totals))
        for name in names:
            values = [ratio for ratio in totals if ratio.startswith(f"{name}/")]
            if values:
                parts["all rows"] = parts["score"]
                parts["score"] = dict.fromkeys(values, 100.0 / len(values))
                break
        return parts

    return formula


# ---------------------------------------------------------------------- a metric
@dataclass(frozen=True)
class Metric:
    """A way to score a benchmark.

    Attributes:
        name: in `scoring.METRICS`.
        unit_name: of the headline: "percent", "points of 1000", ...
        rule: what is compared and whose rule it is, in a sentence.
        read: marks one answer that is not blank.
        fields: columns that a row must have, beside its answers; those of VLMEvalKit's TSVs.
        terms: what the rows of a group add to each ratio.
        formula: (total denominator of each ratio) -> how ratios make the headline and the parts.
        groups: the group of each row; what is resampled and paired together.
        golds: the reference answers of a row; () when a server keeps them.
    """

    name: str
    unit_name: str
    rule: str
    read: Callable[[Prediction, str], Mark]
    fields: tuple[str, ...] = ()
    terms: Callable[[Rows], Terms] = average
    formula: Callable[[Mapping[str, float]], Formula] = percentages
    groups: Callable[[Sequence[Prediction]], list[str]] = by_id
    golds: Callable[[Prediction], tuple[str, ...]] = given_answers

    def mark(self, prediction: Prediction, text: str) -> Mark:
        """Mark one answer to the question of a row; a blank one is `UNPARSED`.

        Raises:
            ValueError: the row lacks a column that the metric needs, or it cannot be read.
        """
        missing = [name for name in self.fields if column(prediction, name) is None]
        if missing:
            raise ValueError(
                f"row {prediction.id} has no column {', '.join(missing)}, which the metric "
                f"{self.name!r} needs; it has {', '.join(prediction.fields) or 'none'}."
            )
        return self.read(prediction, text) if text.strip() else UNPARSED

    def tally(self, predictions: Sequence[Prediction], marks: Sequence[Mark]) -> Tally:
        """What each group adds to each ratio; groups in the order of their first row."""
        grouped: dict[str, list[tuple[Prediction, Mark]]] = {}
        for name, row in zip(
            self.groups(predictions), zip(predictions, marks, strict=True), strict=True
        ):
            grouped.setdefault(name, []).append(row)
        terms = [self.terms(rows) for rows in grouped.values()]
        ratios = tuple(dict.fromkeys(name for each in terms for name in each))
        both = np.array([[each.get(name, (0.0, 0.0)) for name in ratios] for each in terms])
        both = both.reshape(len(terms), len(ratios), 2).astype(np.float64)  # (G, K, 2)
        return Tally(tuple(grouped), ratios, both[..., 0], both[..., 1])

    def parts(self, tally: Tally) -> dict[str, float]:
        """The headline under "score", then the parts, in the units of the report."""
        values = tally.values()
        return {
            part: math.fsum(weight * values[name] for name, weight in weights.items())
            for part, weights in self.formula(tally.totals()).items()
        }

    def summarise(
        self, predictions: Sequence[Prediction], marks: Sequence[Mark]
    ) -> dict[str, float]:
        """The headline under "score", then the parts, in the units of the report."""
        return self.parts(self.tally(predictions, marks))
