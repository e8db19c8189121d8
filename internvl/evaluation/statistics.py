"""How sure a score is, and whether two runs differ: bootstrap, permutation test, McNemar's test.

    groups -> (numerators, denominators, weights) = Ratios -> value, interval, p of a difference

A score here is a weighted sum of ratios of sums over groups (metrics/family.py), so that resampling
groups is arithmetic on sums: groups that add the same are drawn together, by one multinomial draw,
and leaving one out is a subtraction. A test compares this with scipy.stats.bootstrap, which would
gather resamples x groups x ratios numbers. The generator is always an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

# G groups    U groups that differ    K ratios    R resamples

_CHUNK = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Ratios:
    """sum over k of weight_k * (sum over g of N_gk) / (sum over g of D_gk).

    Attributes:
        numerators: (G, K) float64.
        denominators: (G, K) float64, >= 0.
        weights: (K,) float64.

    Raises:
        ValueError: shapes that do not fit, or no groups.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        shape = self.numerators.shape
        fits = self.denominators.shape == shape and self.weights.shape == shape[1:]
        if len(shape) != 2 or not fits or not shape[0]:
            raise ValueError(
                f"numerators {shape}, denominators {self.denominators.shape} and weights "
                f"{self.weights.shape}; expected (G, K), (G, K) and (K,), G at least 1."
            )

    def of(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """The statistic of sums (..., K), as (...). A ratio that a resample has no rows for keeps
        its value over all groups."""
        whole = _divide(self.numerators.sum(0), self.denominators.sum(0), 0.0)
        return _divide(above, below, np.broadcast_to(whole, above.shape)) @ self.weights

    def value(self) -> float:
        """The statistic of all groups."""
        return float(self.of(self.numerators.sum(0), self.denominators.sum(0)))


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends included."""

    low: float
    high: float
    level: float = 0.95


def _divide(above: np.ndarray, below: np.ndarray, otherwise: Any) -> np.ndarray:
    found = np.empty_like(above)
    found[...] = otherwise
    return np.divide(above, below, out=found, where=below > 0)


def _distinct(ratios: Ratios) -> tuple[np.ndarray, np.ndarray]:
    """Groups that differ, (U, 2K), and how many there are of each, (U,)."""
    both = np.hstack([ratios.numerators, ratios.denominators])
    return np.unique(both, axis=0, return_counts=True)


def resample(ratios: Ratios, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Draw as many groups as there are, with replacement; (R,) values of the statistic."""
    rows, counts = _distinct(ratios)
    groups, width = int(counts.sum()), ratios.weights.size
    values = []
    step = max(1, _CHUNK // len(rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.multinomial(groups, counts / groups, size=size)  # (r, U)
        sums = drawn @ rows  # (r, 2K)
        values.append(ratios.of(sums[:, :width], sums[:, width:]))
    return np.concatenate(values)


def bootstrap_interval(
    ratios: Ratios,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    method: Literal["percentile", "bca"] = "percentile",
) -> Interval | None:
    """Confidence interval of a score by the bootstrap over its groups (Efron 1979).

    Args:
        ratios: the score.
        rng: draws the groups.
        level: of confidence.
        resamples: how many.
        method: "bca" corrects for bias and skewness (Efron 1987), which scores near 0 or 100 have.

    Returns:
        None with fewer than two groups, of which nothing can be learned. Where all groups are the
        same, both ends are the score.

    Raises:
        ValueError: a level outside 0..1, or no resamples.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} and {resamples} resamples; expected 0 < level < 1, >= 1.")
    if len(ratios.numerators) < 2:
        return None
    values = resample(ratios, rng, resamples)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca(ratios, values, tails)
    low, high = np.quantile(values, tails)
    return Interval(float(low), float(high), level)


def _bca(ratios: Ratios, values: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Which quantiles to take: equations 14.9 to 14.15 of Efron & Tibshirani 1993."""
    from scipy.special import ndtr, ndtri

    whole = ratios.value()
    below = ((values < whole).sum() + (values <= whole).sum()) / (2 * len(values))
    if not 0 < below < 1:
        return tails
    rows, counts = _distinct(ratios)
    width = ratios.weights.size
    left_out = (counts @ rows) - rows  # (U, 2K): sums without one group
    jackknife = ratios.of(left_out[:, :width], left_out[:, width:])
    gap = np.average(jackknife, weights=counts) - jackknife
    spread = float((counts * gap**2).sum())
    if spread <= 0:
        return tails
    acceleration = float((counts * gap**3).sum()) / (6 * spread**1.5)
    bias = ndtri(below)
    shifted = bias + ndtri(tails)
    return ndtr(bias + shifted / (1 - acceleration * shifted))


# ---------------------------------------------------------------------- two runs
def difference(first: Ratios, second: Ratios) -> Ratios:
    """The first score minus the second, of the same groups in the same order."""
    if first.numerators.shape[0] != second.numerators.shape[0]:
        raise ValueError(
            f"{first.numerators.shape[0]} and {second.numerators.shape[0]} groups; a paired "
            "comparison needs the same ones."
        )
    return Ratios(
        np.hstack([first.numerators, second.numerators]),
        np.hstack([first.denominators, second.denominators]),
        np.concatenate([first.weights, -second.weights]),
    )


def permutation_test(
    first: Ratios, second: Ratios, rng: np.random.Generator, *, resamples: int = 9999
) -> float:
    """Two-sided p of "the two runs are exchangeable, group by group" (Fisher's permutation test).

    The two results of each group are swapped or not; all ways are tried when there are at most
    `resamples` of them. Groups in which the runs agree change nothing and are left alone. A test
    compares this with scipy.stats.permutation_test, which shuffles every pair of every resample.

    Args:
        first: a score.
        second: another of the same groups in the same order, with the same weights.
        rng: draws the swaps.
        resamples: at most so many.

    Raises:
        ValueError: other groups or weights.
    """
    if first.numerators.shape != second.numerators.shape or np.any(first.weights != second.weights):
        raise ValueError("the two scores have other groups or ratios; expected the same.")
    one, two = (np.hstack([each.numerators, each.denominators]) for each in (first, second))
    differ = np.any(one != two, axis=1)
    count = int(differ.sum())
    if not count:
        return 1.0
    width = first.weights.size
    both = replace(  # a ratio without rows keeps the value over both runs
        first,
        numerators=np.vstack([first.numerators, second.numerators]),
        denominators=np.vstack([first.denominators, second.denominators]),
    )
    observed = abs(first.value() - second.value())
    exact = 2**count <= resamples
    total = 2**count if exact else resamples
    extreme = 0
    for start in range(0, total, step := max(1, _CHUNK // count)):
        size = min(step, total - start)
        if exact:
            stays = (np.arange(start, start + size)[:, None] >> np.arange(count)) & 1
        else:
            stays = rng.integers(2, size=(size, count))
        moved = stays @ (one - two)[differ]  # (r, 2K)
        first_sums = two[differ].sum(0) + moved + one[~differ].sum(0)
        second_sums = one[differ].sum(0) - moved + one[~differ].sum(0)
        ends = [both.of(each[:, :width], each[:, width:]) for each in (first_sums, second_sums)]
        # Rounding must not tell a way from its mirror image.
        extreme += int((np.abs(ends[0] - ends[1]) >= observed * (1 - 1e-9) - 1e-12).sum())
    return extreme / total if exact else (extreme + 1) / (total + 1)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p that a run is as often right alone as the other (McNemar, exact; scipy.stats).

    Args:
        only_first: groups that only the first run has right.
        only_second: groups that only the second has right.

    Raises:
        ValueError: a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are {only_first} and {only_second}; expected none below 0.")
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


def discordant(first: Ratios, second: Ratios) -> tuple[int, int] | None:
    """Groups that only the first, and only the second run has right; None if marks are not 0 or 1,
    or a group is more than one of them."""
    hits = []
    for each in (first, second):
        if not (np.all(each.denominators.sum(1) == 1) and np.all(each.denominators.max(1) == 1)):
            return None
        above = each.numerators.sum(1)
        if not np.all((above == 0) | (above == 1)):
            return None
        hits.append(above == 1)
    return int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
