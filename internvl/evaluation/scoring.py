"""Scores of a predictions file: the registry of metrics, the score of a run, the two of a pair.

    predictions.jsonl -> mark every response -> choose one per row -> Metric -> Score, Comparison

A row may have several responses (a vote). Then the majority of their parsed answers counts, ties
going to the one seen first, and unparsed ones having no vote; or whatever `choose` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np

from internvl.answers import majority_vote
from internvl.evaluation.metrics.anls import ANLS
from internvl.evaluation.metrics.chartqa import RELAXED_ACCURACY
from internvl.evaluation.metrics.choices import (
    CHOICE,
    CHOICE_MACRO,
    CIRCULAR,
    MANTIS,
    MME_REALWORLD,
    MMIU,
    MMT,
)
from internvl.evaluation.metrics.crpe import CRPE
from internvl.evaluation.metrics.exact import EXACT
from internvl.evaluation.metrics.family import UNPARSED, Mark, Metric, Tally
from internvl.evaluation.metrics.grounding import REFCOCO
from internvl.evaluation.metrics.math_answers import MATHVERSE, MATHVISION, MATHVISTA
from internvl.evaluation.metrics.mirb import MIRB
from internvl.evaluation.metrics.mmmu import MMMU, MMMU_PRO
from internvl.evaluation.metrics.ocr import CONTAINMENT, MTVQA, OCRBENCH
from internvl.evaluation.metrics.olympiad import OLYMPIAD
from internvl.evaluation.metrics.vcr import VCR
from internvl.evaluation.metrics.video import MVBENCH
from internvl.evaluation.metrics.vqa import VQA_SOFT
from internvl.evaluation.metrics.yes_no import HALLUSION, MME, POPE, YES_NO
from internvl.evaluation.records import Prediction
from internvl.evaluation.statistics import (
    Ratios,
    bootstrap_interval,
    difference,
    discordant,
    mcnemar,
    permutation_test,
)

__all__ = [
    "METRICS",
    "UNPARSED",
    "Comparison",
    "Mark",
    "Metric",
    "Score",
    "check_pair",
    "compare",
    "first",
    "get_metric",
    "headline",
    "mark_all",
    "score",
    "vote",
]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ANLS,
        CHOICE,
        CHOICE_MACRO,
        CIRCULAR,
        CONTAINMENT,
        CRPE,
        EXACT,
        HALLUSION,
        MANTIS,
        MATHVERSE,
        MATHVISION,
        MATHVISTA,
        MIRB,
        MME,
        MME_REALWORLD,
        MMIU,
        MMMU,
        MMMU_PRO,
        MMT,
        MTVQA,
        MVBENCH,
        OCRBENCH,
        OLYMPIAD,
        POPE,
        REFCOCO,
        RELAXED_ACCURACY,
        VCR,
        VQA_SOFT,
        YES_NO,
    )
}

# Which response of a row counts: (row, marks of its responses) -> its place.
Choose = Callable[[Prediction, Sequence[Mark]], int]

_SHOWN = 30  # parts that `describe` prints


def get_metric(name: str) -> Metric:
    """A metric by its name.

    Raises:
        ValueError: there is none; the message names close ones.
    """
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=3, cutoff=0.4) or sorted(METRICS)
        raise ValueError(f"there is no metric {name!r}; did you mean {', '.join(near)}?")
    return METRICS[name]


# ---------------------------------------------------------------------- which response counts
def vote(prediction: Prediction, marks: Sequence[Mark]) -> int:
    """The first response with the answer that most responses have (`answers.majority_vote`).

    Answers are brought into one form first. The first response when no answer could be parsed.
    """
    answers = [mark.parsed for mark in marks]
    winner = majority_vote(answers).winner
    return 0 if winner is None else answers.index(winner)


def first(prediction: Prediction, marks: Sequence[Mark]) -> int:
    """The first response."""
    return 0


_CHOOSERS: dict[str, Choose] = {"vote": vote, "first": first}


# ---------------------------------------------------------------------- a score
@dataclass(frozen=True)
class Score:
    """The score of a run.

    Attributes:
        metric: its name.
        unit_name: of the score and of most parts.
        n: rows.
        groups: what was resampled: rows, circular sets, pictures.
        score: the headline, in the unit of the report.
        low: lower end of the bootstrap interval; None with a single group.
        high: upper end.
        level: of the interval.
        parts: splits, subtasks and other aggregates, by name.
        unparsed: share of responses without an answer, which score 0.
        truncated: share of responses that were cut off at the longest answer.
        responses: per row, the largest number of them.
        marks: id -> mark of the response that counted.
    """

    metric: str
    unit_name: str
    n: int
    groups: int
    score: float
    low: float | None
    high: float | None
    level: float
    parts: Mapping[str, float]
    unparsed: float
    truncated: float
    responses: int = 1
    marks: Mapping[str, Mark] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the marks."""
        names = (each.name for each in fields(self) if each.name != "marks")
        return {name: getattr(self, name) for name in names} | {"parts": dict(self.parts)}

    def describe(self) -> str:
        """For people: the headline, then a line per part."""
        text = f"{self.score:.1f} {self.unit_name}"
        if self.low is not None and self.high is not None:
            text += f" ({self.level:.0%} interval {self.low:.1f} to {self.high:.1f})"
        text += f", n = {self.n}"
        if self.groups != self.n:
            text += f" in {self.groups} groups"
        if self.responses > 1:
            text += f", {self.responses} responses each"
        text += f"; unparsed {self.unparsed:.1%}, truncated {self.truncated:.1%}"
        shown = list(self.parts.items())[:_SHOWN]
        width = max((len(name) for name, _ in shown), default=0)
        lines = [f"  {name:<{width}}  {value:.1f}" for name, value in shown]
        if len(self.parts) > len(shown):
            lines.append(f"  and {len(self.parts) - len(shown)} more parts")
        return "\n".join([text, *lines])


def mark_all(predictions: Sequence[Prediction], metric: str | Metric) -> dict[str, list[Mark]]:
    """Mark every response: id -> marks in the order of the responses.

    Raises:
        ValueError: no rows, a row without response, rows without reference answers, or an id that
            comes twice.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    _check(predictions, metric)
    return {
        each.id: [metric.mark(each, response.text) for response in each.responses]
        for each in predictions
    }


def _check(predictions: Sequence[Prediction], metric: Metric) -> None:
    if not predictions:
        raise ValueError("there are no predictions to score.")
    repeated = [k for k, count in Counter(each.id for each in predictions).items() if count > 1]
    if repeated:
        raise ValueError(f"the id {repeated[0]!r} comes twice among the predictions.")
    silent = [each.id for each in predictions if not each.responses]
    if silent:
        raise ValueError(f"row {silent[0]!r} has no response; run it again.")
    without = [each.id for each in predictions if not metric.golds(each)]
    if len(without) == len(predictions):
        raise ValueError(
            f"none of the {len(predictions)} rows has a reference answer: the answers of this "
            "split are not public: score on the server."
        )
    if without:
        raise ValueError(
            f"{len(without)} of {len(predictions)} rows have no reference answer, the first is "
            f"{without[0]!r}; leave them out, or complete the column of the answers."
        )


def score(
    predictions: Sequence[Prediction],
    metric: str | Metric,
    *,
    choose: Choose | Literal["vote", "first"] | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    method: Literal["percentile", "bca"] = "percentile",
) -> Score:
    """Score a run.

    Args:
        predictions: its rows.
        metric: a name in `METRICS`, or a metric.
        choose: which of several responses counts: "vote" (None is the same), "first", or a function
            of the row and its marks that gives a place (a best-of-N by a reward model).
        rng: draws the resamples of the interval; seed 0 when None, so that a score is the same
            however often it is computed.
        level: of the interval.
        resamples: of the interval.
        method: of the interval, see `statistics.bootstrap_interval`.

    Raises:
        ValueError: as in `mark_all`, or a place that is no response.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    marks = mark_all(predictions, metric)
    chosen = _chosen(predictions, marks, choose)
    tally = metric.tally(predictions, list(chosen.values()))
    parts = metric.parts(tally)
    interval = bootstrap_interval(
        headline(metric, tally),
        np.random.default_rng(0) if rng is None else rng,
        level=level,
        resamples=resamples,
        method=method,
    )
    every = [mark for each in marks.values() for mark in each]
    cut = [r.finish_reason == "length" for each in predictions for r in each.responses]
    return Score(
        metric=metric.name,
        unit_name=metric.unit_name,
        n=len(predictions),
        groups=len(tally.groups),
        score=parts.pop("score"),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        level=level,
        parts=parts,
        unparsed=sum(mark.parsed is None for mark in every) / len(every),
        truncated=sum(cut) / len(cut),
        responses=max(len(each) for each in marks.values()),
        marks=chosen,
    )


def _chosen(
    predictions: Sequence[Prediction],
    marks: Mapping[str, Sequence[Mark]],
    choose: Choose | str | None,
) -> dict[str, Mark]:
    """The mark of the response that counts, per row."""
    if isinstance(choose, str) and choose not in _CHOOSERS:
        raise ValueError(f"choose is {choose!r}; expected {', '.join(_CHOOSERS)} or a function.")
    pick = choose if callable(choose) else _CHOOSERS[choose or "vote"]
    found = {}
    for each in predictions:
        place = pick(each, marks[each.id])
        if not 0 <= place < len(marks[each.id]):
            raise ValueError(
                f"row {each.id}: response {place} was chosen of {len(marks[each.id])}; the first "
                "is 0."
            )
        found[each.id] = marks[each.id][place]
    return found


def headline(metric: Metric, tally: Tally) -> Ratios:
    """What `formula` takes from a tally for the score: the ratios of its headline, weighted."""
    weights = metric.formula(tally.totals())["score"]
    places = [tally.ratios.index(name) for name in weights]
    return Ratios(
        tally.numerators[:, places],
        tally.denominators[:, places],
        np.array(list(weights.values()), np.float64),
    )


# ---------------------------------------------------------------------- two runs
@dataclass(frozen=True)
class Comparison:
    """Two runs of the same rows.

    Attributes:
        metric: its name.
        unit_name: of the scores.
        n: rows.
        groups: what was resampled and swapped.
        a: score of the first run.
        b: score of the second.
        difference: a - b.
        low: lower end of the bootstrap interval of the difference; None with a single group.
        high: upper end.
        level: of the interval.
        p: two-sided, of the paired permutation test over groups.
        only_a: groups that only the first run has right; None where marks are not 0 or 1.
        only_b: groups that only the second has right.
        mcnemar: two-sided p of McNemar's exact test on these two.
    """

    metric: str
    unit_name: str
    n: int
    groups: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    level: float
    p: float
    only_a: int | None = None
    only_b: int | None = None
    mcnemar: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def describe(self) -> str:
        """For people."""
        text = f"{self.a:.1f} - {self.b:.1f} = {self.difference:+.1f} {self.unit_name}"
        if self.low is not None and self.high is not None:
            text += f" ({self.level:.0%} interval {self.low:+.1f} to {self.high:+.1f})"
        text += f", n = {self.n}; p = {self.p:.3g} (paired permutation)"
        if self.mcnemar is not None:
            text += (
                f", right alone {self.only_a} and {self.only_b}, p = {self.mcnemar:.3g} (McNemar)"
            )
        return text


def compare(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    metric: str | Metric,
    *,
    choose: Choose | Literal["vote", "first"] | None = None,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
    resamples: int = 9999,
) -> Comparison:
    """Compare two runs of the same rows.

    Args:
        a: rows of the first run.
        b: rows of the second, in any order.
        metric: a name in `METRICS`, or a metric.
        choose: as in `score`.
        rng: draws resamples and swaps; seed 0 when None.
        level: of the interval.
        resamples: of the interval and of the test.

    Raises:
        ValueError: as in `score`; other rows, or other reference answers.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    check_pair(a, b)
    by_id = {each.id: each for each in b}
    runs = (list(a), [by_id[each.id] for each in a])
    headlines = []
    for rows in runs:
        chosen = _chosen(rows, mark_all(rows, metric), choose)
        headlines.append(metric.tally(rows, list(chosen.values())))
    one, two = (headline(metric, tally) for tally in headlines)
    generator = np.random.default_rng(0) if rng is None else rng
    interval = bootstrap_interval(difference(one, two), generator, level=level, resamples=resamples)
    alone = discordant(one, two)
    return Comparison(
        metric=metric.name,
        unit_name=metric.unit_name,
        n=len(a),
        groups=len(headlines[0].groups),
        a=one.value(),
        b=two.value(),
        difference=one.value() - two.value(),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        level=level,
        p=permutation_test(one, two, generator, resamples=resamples),
        only_a=alone[0] if alone else None,
        only_b=alone[1] if alone else None,
        mcnemar=mcnemar(*alone) if alone else None,
    )


def check_pair(a: Sequence[Prediction], b: Sequence[Prediction]) -> None:
    """Refuse two runs that cannot be compared.

    Raises:
        ValueError: other rows, or other reference answers.
    """
    answers: list[dict[str, Any]] = [{each.id: each.answers for each in run} for run in (a, b)]
    only = [sorted(set(answers[0]) - set(answers[1])), sorted(set(answers[1]) - set(answers[0]))]
    if only[0] or only[1]:
        examples = ", ".join((only[0] + only[1])[:3])
        raise ValueError(
            f"the runs have other rows: {len(only[0])} only in the first, {len(only[1])} only in "
            f"the second (such as {examples}); a paired comparison needs the same rows."
        )
    other = [key for key, answer in answers[0].items() if answers[1][key] != answer]
    if other:
        raise ValueError(
            f"row {other[0]!r} has other reference answers in the two runs, so they are not of the "
            "same data."
        )
