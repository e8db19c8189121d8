"""Test-time scaling of a run with N answers per question (report section 5.1, Figure 9).

    N marks per row -> how often each answer wins k of them -> expected tally -> maj@k, pass@k

A point of a curve is what a run with k answers per question scores on average over all choices of
k of the N answers: exactly for metrics that judge rows one by one (which answer wins is counted
over all subsets, or over seeded ones where there are too many), over seeded draws for metrics that
judge rows together (circular sets, pairs). A ratio such as F1 is that of the expected counts.

Two answers are the same when their parsed forms are, after `answers.normalize_answer`; the winner
gets its own mark of the metric. Ties go to the answer seen first, and an answer that was not found
has no vote, as in `answers.majority_vote`.

Bands are bootstrap intervals over questions, given the N answers. Nothing here asks a model.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from internvl.answers import MOST_SUBSETS, normalize_answer
from internvl.evaluation.metrics.family import Tally
from internvl.evaluation.records import Prediction
from internvl.evaluation.scoring import UNPARSED, Mark, Metric, get_metric, headline, mark_all
from internvl.evaluation.statistics import Interval, Ratios, bootstrap_interval, difference

# n rows    N answers of a row    S subsets of them    A distinct answers    G groups    K ratios

# Of each row, where there are more than `answers.MOST_SUBSETS` ways to choose k answers.
RANDOM_SUBSETS = 2000
PICKED = "the higher of several runs, picked on the test set itself"


@dataclass(frozen=True)
class Point:
    """The score with k answers per question.

    Attributes:
        k: answers.
        value: in the unit of the metric.
        low: lower end of its interval; None with a single group.
        high: upper end.
        gain: value - value at k = 1.
        gain_low: lower end of the interval of the gain, which is paired.
        gain_high: upper end.
        tokens: generated per question, on average. The prompt is computed once, whatever k is.
        silent: share of rows in which none of the k answers could be parsed.
    """

    k: int
    value: float
    low: float | None
    high: float | None
    gain: float
    gain_low: float | None
    gain_high: float | None
    tokens: float
    silent: float


@dataclass(frozen=True)
class Curve:
    """A score over the number of answers.

    Attributes:
        name: "maj@k" or "pass@k".
        unit_name: of its values.
        points: by rising k.
        exact: whether no point is a mean over random draws.
    """

    name: str
    unit_name: str
    points: tuple[Point, ...]
    exact: bool

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Curve:
        """Read a curve of `Scaling.as_dict`."""
        return cls(**{**raw, "points": tuple(Point(**point) for point in raw["points"])})

    def at(self, k: int) -> Point:
        """The point at k.

        Raises:
            ValueError: the curve has none there.
        """
        for point in self.points:
            if point.k == k:
                return point
        raise ValueError(f"there is no point at k = {k}; the curve has {self.ks}.")

    @property
    def ks(self) -> list[int]:
        """The k of all points."""
        return [point.k for point in self.points]


@dataclass(frozen=True)
class Scaling:
    """What several answers per question bring.

    Attributes:
        metric: its name.
        n: questions.
        answers: per question.
        majority: the score of a vote of k.
        passed: the score of the best of k, which a perfect choice among them would reach.
        tokens: of an answer, on average.
        truncated: share of answers that were cut off at the longest answer. Loops end up here.
        unparsed: share of answers in which none was found.
    """

    metric: str
    n: int
    answers: int
    majority: Curve
    passed: Curve
    tokens: float
    truncated: float
    unparsed: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Scaling:
        """Read what `as_dict` gave.

        Raises:
            ValueError: another form.
        """
        try:
            curves = {name: Curve.from_dict(raw[name]) for name in ("majority", "passed")}
            return cls(**{**raw, **curves})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"not a Scaling ({type(error).__name__}: {error}); expected what `as_dict` gives."
            ) from error

    def describe(self) -> str:
        """For people: a line per k."""
        lines = [
            f"{self.n} questions, {self.answers} answers each of {self.tokens:.1f} tokens; "
            f"unparsed {self.unparsed:.1%}, truncated {self.truncated:.1%}",
            "   k   maj@k            gain over k = 1    pass@k  tokens",
        ]
        for vote, best in zip(self.majority.points, self.passed.points, strict=True):
            lines.append(
                f"{vote.k:>4}  {vote.value:5.1f} {_span(vote.low, vote.high, ''):<14} "
                f"{vote.gain:+5.1f} {_span(vote.gain_low, vote.gain_high, '+'):<14} "
                f"{best.value:5.1f}  {vote.tokens:.0f}"
            )
        return "\n".join(lines)


def _span(low: float | None, high: float | None, sign: str) -> str:
    return "" if low is None or high is None else f"({low:{sign}.1f} to {high:{sign}.1f})"


# ---------------------------------------------------------------------- curves
def scaling(
    predictions: Sequence[Prediction],
    metric: str | Metric,
    *,
    ks: Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 200,
    resamples: int = 2000,
    level: float = 0.95,
) -> Scaling:
    """Both curves of a run, and what it spent.

    Args:
        predictions: rows, all with the same number N of answers.
        metric: a name in `scoring.METRICS`, or a metric.
        ks: numbers of answers; 1 to N when None.
        rng: for what is drawn; seed 0 when None, so that a curve is the same however often it is
            computed.
        draws: outcomes drawn at each k where a metric judges rows together.
        resamples: of the bootstrap.
        level: of the intervals.

    Raises:
        ValueError: as in `scoring.mark_all`; rows with different numbers of answers; a k outside
            1..N.
    """
    run = _Run(predictions, metric, ks, rng, draws, {"resamples": resamples, "level": level})
    every = [response for each in predictions for response in each.responses]
    unparsed = sum(mark.parsed is None for row in run.marks for mark in row[:-1])
    return Scaling(
        metric=run.metric.name,
        n=len(predictions),
        answers=run.answers,
        majority=run.curve("maj@k", _vote_odds),
        passed=run.curve("pass@k", _best_odds),
        tokens=run.tokens,
        truncated=sum(response.finish_reason == "length" for response in every) / len(every),
        unparsed=unparsed / len(every),
    )


def vote_curve(
    predictions: Sequence[Prediction],
    metric: str | Metric,
    *,
    ks: Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 200,
    resamples: int = 2000,
    level: float = 0.95,
) -> Curve:
    """maj@k: the score when k answers vote. Arguments and errors are those of `scaling`."""
    run = _Run(predictions, metric, ks, rng, draws, {"resamples": resamples, "level": level})
    return run.curve("maj@k", _vote_odds)


def pass_curve(
    predictions: Sequence[Prediction],
    metric: str | Metric,
    *,
    ks: Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 200,
    resamples: int = 2000,
    level: float = 0.95,
) -> Curve:
    """pass@k: the score when the best of k answers counts, unbiased (`answers.pass_at_k`; for marks
    between 0 and 1 the expected best one). Arguments and errors are those of `scaling`."""
    run = _Run(predictions, metric, ks, rng, draws, {"resamples": resamples, "level": level})
    return run.curve("pass@k", _best_odds)


def _marks(predictions: Sequence[Prediction], metric: Metric) -> list[list[Mark]]:
    found = list(mark_all(predictions, metric).values())
    counts = {len(row): each.id for row, each in zip(found, predictions, strict=True)}
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise ValueError(
            f"row {first!r} has {one} answers and row {second!r} has {other}; a curve over their "
            "number needs as many for each, so all rows from one run."
        )
    return found


def _ks(ks: Sequence[int] | None, answers: int) -> list[int]:
    wanted = list(range(1, answers + 1)) if ks is None else sorted(set(ks))
    if not wanted or wanted[0] < 1 or wanted[-1] > answers:
        raise ValueError(
            f"ks is {ks}, but the rows have {answers} answers; expected some of 1 to {answers}."
        )
    return wanted


# (marks of a row, k, a seed) -> (N + 1,) and whether that is exact. The i-th number is the chance
# that of k answers the i-th counts, the last that none does.
_Odds = Callable[[Sequence[Mark], int, int], tuple[np.ndarray, bool]]


class _Run:
    """The score of rows in which it is a matter of chance which answer counts."""

    def __init__(
        self,
        predictions: Sequence[Prediction],
        metric: str | Metric,
        ks: Sequence[int] | None,
        rng: np.random.Generator | None,
        draws: int,
        bootstrap: dict[str, Any],
    ) -> None:
        self.predictions = predictions
        self.metric = get_metric(metric) if isinstance(metric, str) else metric
        marks = _marks(predictions, self.metric)
        self.answers = len(marks[0])
        self.ks = _ks(ks, self.answers)
        self.marks = [[*row, UNPARSED] for row in marks]  # (n, N + 1)
        self.tokens = float(np.mean([r.tokens for each in predictions for r in each.responses]))
        self.rng = np.random.default_rng(0) if rng is None else rng
        self.draws, self.bootstrap = draws, bootstrap
        self.alone = len(set(self.metric.groups(predictions))) == len(predictions)
        columns = zip(*self.marks, strict=True) if self.alone else ()
        self.tallies = [self.metric.tally(predictions, column) for column in columns]

    def curve(self, name: str, odds: _Odds) -> Curve:
        """The expected score for each k."""
        points: list[Point] = []
        exact = True
        once, silent, sure = self._expected(odds, 1)
        for k in self.ks:
            ratios = once
            if k > 1:
                ratios, silent, sure = self._expected(odds, k)
            band, gain = self._intervals(ratios, once)
            ends = (*_ends(band), ratios.value() - once.value(), *_ends(gain))
            points.append(Point(k, ratios.value(), *ends, tokens=k * self.tokens, silent=silent))
            exact = exact and sure
        return Curve(name, self.metric.unit_name, tuple(points), exact)

    def _intervals(self, ratios: Ratios, once: Ratios) -> tuple[Interval | None, Interval | None]:
        """Of the score, and of its gain over one answer, from the same resamples."""
        seed = int(self.rng.integers(2**62))
        band = bootstrap_interval(ratios, np.random.default_rng(seed), **self.bootstrap)
        if band is None or ratios is once:
            return band, band and Interval(0.0, 0.0)
        gain = difference(ratios, once)
        return band, bootstrap_interval(gain, np.random.default_rng(seed), **self.bootstrap)

    def _expected(self, odds: _Odds, k: int) -> tuple[Ratios, float, bool]:
        """The headline with k answers, the share of silent rows, and whether both are exact."""
        seed = int(self.rng.integers(2**62))
        found = [odds(row[:-1], k, seed) for row in self.marks]
        chances = np.array([each for each, _ in found])  # (n, N + 1)
        silent, exact = float(chances[:, -1].mean()), all(sure for _, sure in found)
        if self.alone:  # what a row adds depends on its own answer: weigh what each would add
            return _weighted(self.metric, self.tallies, chances.T), silent, exact
        certain = bool(np.all(chances.max(1) == 1.0))
        outcomes = [self._outcome(chances) for _ in range(1 if certain else self.draws)]
        weights = np.full((len(outcomes), len(outcomes[0].groups)), 1 / len(outcomes))
        return _weighted(self.metric, outcomes, weights), silent, exact and certain

    def _outcome(self, chances: np.ndarray) -> Tally:
        """The rows with one answer each, drawn by their chances."""
        edges = chances.cumsum(1)
        edges[:, -1] = 1.0
        places = (self.rng.random((len(edges), 1)) >= edges).sum(1)
        marks = [row[place] for row, place in zip(self.marks, places, strict=True)]
        return self.metric.tally(self.predictions, marks)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _weighted(metric: Metric, tallies: Sequence[Tally], weights: np.ndarray) -> Ratios:
    """The headline of a weighted sum of tallies of the same groups; weights: (tallies, G)."""
    names = tuple(dict.fromkeys(name for tally in tallies for name in tally.ratios))
    shape = (weights.shape[1], len(names))
    above, below = np.zeros(shape), np.zeros(shape)
    for tally, weight in zip(tallies, weights, strict=True):
        places = [names.index(name) for name in tally.ratios]
        above[:, places] += weight[:, None] * tally.numerators
        below[:, places] += weight[:, None] * tally.denominators
    return headline(metric, Tally(tallies[0].groups, names, above, below))


# ---------------------------------------------------------------------- which answer counts
def _vote_odds(marks: Sequence[Mark], k: int, seed: int) -> tuple[np.ndarray, bool]:
    """How often each answer is the first of those that win a vote of k."""
    forms = [None if mark.parsed is None else normalize_answer(mark.parsed) for mark in marks]
    places: dict[str, int] = {}
    pattern = tuple(places.setdefault(f, i) if f else -1 for i, f in enumerate(forms))
    exact = math.comb(len(marks), k) <= MOST_SUBSETS
    return _pattern_odds(pattern, k, None if exact else seed), exact


@functools.lru_cache(maxsize=4096)
def _pattern_odds(pattern: tuple[int, ...], k: int, seed: int | None) -> np.ndarray:
    """The odds of a row whose i-th answer is the same as its `pattern[i]`-th (-1: none found)."""
    chosen = _subsets(len(pattern), k, seed)  # (S, N)
    winners = _winners(np.array(pattern), chosen)
    found = np.bincount(winners, minlength=len(pattern) + 1) / len(chosen)
    found.setflags(write=False)
    return found


@functools.lru_cache(maxsize=16)
def _subsets(answers: int, k: int, seed: int | None) -> np.ndarray:
    """(S, N) bool: all ways to choose k answers, or random ones of a seed."""
    if seed is None:
        rows = np.array(list(itertools.combinations(range(answers), k)))
    else:
        rng = np.random.default_rng(seed)
        rows = np.argsort(rng.random((RANDOM_SUBSETS, answers)), axis=1)[:, :k]
    found = np.zeros((len(rows), answers), bool)
    np.put_along_axis(found, rows, True, axis=1)
    found.setflags(write=False)
    return found


def _winners(pattern: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(S,): the first chosen answer that agrees with most of the chosen; N when none votes.

    Args:
        pattern: (N,) which answers are the same, see `_pattern_odds`.
        chosen: (S, N) bool.
    """
    answers, voters = len(pattern), np.flatnonzero(pattern >= 0)
    kinds, codes = np.unique(pattern[voters], return_inverse=True)
    votes = np.zeros((len(chosen), len(kinds) + 1), np.int64)  # (S, A + 1); the last: nobody
    first = np.full_like(votes, answers)
    for voter, code in zip(voters[::-1], codes[::-1], strict=True):
        votes[:, code] += chosen[:, voter]
        first[chosen[:, voter], code] = voter
    best = np.argmax(votes * (answers + 1) - first, axis=1)
    return first[np.arange(len(chosen)), best]


def _best_odds(marks: Sequence[Mark], k: int, seed: int) -> tuple[np.ndarray, bool]:
    """How often each answer is the best of k: it is among them, and none above it is."""
    answers = len(marks)
    order = sorted(range(answers), key=lambda i: (-marks[i].score, marks[i].parsed is None))
    found = np.zeros(answers + 1)
    for rank, place in enumerate(order):
        chance = math.comb(answers - 1 - rank, k - 1) / math.comb(answers, k)
        found[answers if marks[place].parsed is None else place] += chance
    return found, True


# ---------------------------------------------------------------------- max(direct, CoT)
@dataclass(frozen=True)
class Higher:
    """The higher of several runs of one benchmark, as the report takes it for MMMU.

    Attributes:
        mode: of the run with the highest score ("direct", "cot").
        score: of that run.
        scores: of all runs.
        how: how it was chosen, for tables.
        parts: the higher one of each part, where the score is their mean.
    """

    mode: str
    score: float
    scores: Mapping[str, float]
    how: str = PICKED
    parts: Mapping[str, Higher] = field(default_factory=dict)

    def describe(self) -> str:
        """For people."""
        each = ", ".join(f"{mode} {score:.1f}" for mode, score in self.scores.items())
        if not self.parts:
            return f"max({each}) = {self.score:.1f}: {self.how}"
        lines = [f"{name}: {part.describe()}" for name, part in self.parts.items()]
        return "\n".join([*lines, f"mean of these {self.score:.1f} (runs as a whole: {each})"])


def higher(scores: Mapping[str, float]) -> Higher:
    """The higher score of a direct and a CoT run (report section 5.1: MMMU, and each setting of
    MMMU-Pro by itself, before their mean).

    It looks at the test set twice and keeps the better look: of two modes that are equally good
    the maximum is, on average, 0.4 standard errors of their difference above either. So show both
    scores beside it, and `Higher.how`.

    Args:
        scores: mode -> headline of the same benchmark and rows; of equal ones the first is taken.

    Raises:
        ValueError: fewer than two runs, or a score that is no number.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} runs {list(scores)}; a maximum needs at least two modes.")
    if wrong := [mode for mode, score in scores.items() if not math.isfinite(score)]:
        raise ValueError(f"the score of {wrong[0]!r} is {scores[wrong[0]]}; expected a number.")
    mode = max(scores, key=lambda each: scores[each])
    return Higher(mode, scores[mode], dict(scores))


def higher_of_parts(parts: Mapping[str, Mapping[str, float]]) -> Higher:
    """The mean over parts of the higher score of each.

    Args:
        parts: part ("setting/vision") -> mode -> score, the same modes in each.

    Raises:
        ValueError: as `higher`; no parts, or other modes in one of them.
    """
    if not parts or len({frozenset(scores) for scores in parts.values()}) > 1:
        raise ValueError(f"expected parts with the same modes in each, got {dict(parts)}.")
    found = {name: higher(scores) for name, scores in parts.items()}
    modes = next(iter(parts.values()))
    means = {mode: math.fsum(each[mode] for each in parts.values()) / len(parts) for mode in modes}
    score = math.fsum(each.score for each in found.values()) / len(found)
    return Higher(" + ".join(each.mode for each in found.values()), score, means, parts=found)
