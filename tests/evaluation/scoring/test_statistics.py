"""Intervals and tests against scipy and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.evaluation import statistics
from internvl.evaluation.statistics import Ratios


def generator(seed=0):
    return np.random.default_rng(seed)


def mean_of(values):
    values = np.asarray(values, np.float64)[:, None]
    return Ratios(values, np.ones_like(values), np.array([100.0]))


def brute_force(ratios, resamples=2000):
    """The same bootstrap, one drawn group at a time."""
    rng, groups = generator(1), len(ratios.numerators)
    found = []
    for _ in range(resamples):
        drawn = rng.integers(groups, size=groups)
        sums = ratios.numerators[drawn].sum(0) / ratios.denominators[drawn].sum(0)
        found.append(sums @ ratios.weights)
    return np.array(found)


@pytest.fixture
def two_splits():
    """Split 0 has 60 groups, split 1 has 30; the statistic is the mean of both means."""
    rng = generator(3)
    split = np.eye(2)[np.repeat([0, 1], [60, 30])]
    marks = (rng.random((90, 1)) < np.repeat([0.8, 0.4], [60, 30])[:, None]) * split
    return Ratios(marks, split, np.array([50.0, 50.0]))


class TestBootstrap:
    @pytest.mark.parametrize("method", ["percentile", "bca"])
    @pytest.mark.parametrize(
        "values",
        [
            generator(5).beta(5, 1, size=80),
            generator(1).lognormal(0, 1.5, size=10),
            np.r_[np.ones(9), np.zeros(3)],  # a quarter of the resamples equal the score
        ],
        ids=["beta", "lognormal", "0 or 1"],
    )
    def test_mean_has_the_interval_of_scipy(self, values, method):
        found = statistics.bootstrap_interval(
            mean_of(values), generator(), resamples=9999, method=method
        )
        expected = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=9999, rng=generator(), method=method, batch=1000
        ).confidence_interval
        # 0.1 standard errors apart at most: the noise of a 2.5 % quantile of 9999 values is 0.03.
        noise = 0.15 * 100 * values.std() / math.sqrt(len(values))
        assert found.low == pytest.approx(100 * expected.low, abs=noise)
        assert found.high == pytest.approx(100 * expected.high, abs=noise)

    def test_bca_differs_from_percentile_where_scores_are_skewed(self):
        values = np.r_[np.ones(57), np.zeros(3)]
        both = [
            statistics.bootstrap_interval(mean_of(values), generator(), method=method)
            for method in ("percentile", "bca")
        ]
        assert both[1].low < both[0].low

    def test_bca_corrects_for_bias(self):
        # Six of ten resamples lie below the score, and nothing is skewed: acceleration 0.
        values, normal = np.r_[np.zeros(60), np.full(40, 100.0)], scipy.stats.norm
        found = statistics._bca(mean_of([0, 1] * 20), values, np.array([0.025, 0.975]))
        expected = normal.cdf(2 * normal.ppf(0.6) + normal.ppf([0.025, 0.975]))
        assert found == pytest.approx(expected)

    def test_proportion_has_the_standard_error_of_the_binomial(self):
        values = np.r_[np.ones(300), np.zeros(100)]
        drawn = statistics.resample(mean_of(values), generator(), 20_000)
        assert drawn.mean() == pytest.approx(75, abs=0.1)
        assert drawn.std() == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 400), rel=0.03)

    def test_groups_that_are_the_same_are_drawn_as_if_one_by_one(self, two_splits):
        drawn = statistics.resample(two_splits, generator(), 4000)
        expected = brute_force(two_splits)
        assert drawn.mean() == pytest.approx(expected.mean(), abs=0.4)
        assert drawn.std() == pytest.approx(expected.std(), rel=0.08)

    def test_large_groups_widen_the_interval(self):
        values = generator(2).integers(0, 2, size=200)
        alone = statistics.bootstrap_interval(mean_of(values), generator())
        four = np.repeat(values, 4)[:, None].astype(float)  # the same questions, four times each
        together = Ratios(
            four.reshape(200, 4).sum(1, keepdims=True), np.full((200, 1), 4.0), np.array([100.0])
        )
        grouped = statistics.bootstrap_interval(together, generator())
        assert grouped == alone
        apart = statistics.bootstrap_interval(mean_of(four[:, 0]), generator())
        assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)

    def test_same_seed_same_interval_and_other_seed_another(self, two_splits):
        one, two, other = (
            statistics.bootstrap_interval(two_splits, generator(seed)) for seed in (1, 1, 2)
        )
        assert one == two
        assert one != other

    def test_few_groups(self):
        assert statistics.bootstrap_interval(mean_of([1.0]), generator()) is None
        same = statistics.bootstrap_interval(mean_of([1.0, 1.0]), generator(), method="bca")
        assert (same.low, same.high) == (100.0, 100.0)

    def test_a_ratio_without_rows_keeps_its_value(self):
        # The only group of the second ratio is missing in a third of the resamples.
        ratios = Ratios(
            np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
            np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
            np.array([1.0, 10.0]),
        )
        drawn = statistics.resample(ratios, generator(), 500)
        assert np.all(np.isfinite(drawn))
        assert np.all(drawn >= 10)

    @settings(max_examples=25)
    @given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 9))
    def test_interval_holds_possible_scores(self, values, seed):
        found = statistics.bootstrap_interval(mean_of(values), generator(seed), resamples=200)
        assert 100 * min(values) - 1e-9 <= found.low <= found.high <= 100 * max(values) + 1e-9

    def test_nonsense_is_refused(self):
        with pytest.raises(ValueError, match="expected 0 < level < 1"):
            statistics.bootstrap_interval(mean_of([0, 1]), generator(), level=95)
        with pytest.raises(ValueError, match=r"expected \(G, K\)"):
            Ratios(np.zeros((2, 1)), np.ones((3, 1)), np.ones(1))
        with pytest.raises(ValueError, match="G at least 1"):
            mean_of([])


class TestPairs:
    def test_permutation_of_means_equals_scipys_own(self):
        rng = generator(8)
        one, two = rng.random(40), rng.random(40) + 0.1
        found = statistics.permutation_test(mean_of(one), mean_of(two), generator())
        expected = scipy.stats.permutation_test(
            (one, two),
            lambda x, y, axis: x.mean(axis) - y.mean(axis),
            permutation_type="samples",
            vectorized=True,
            rng=generator(),
        ).pvalue
        assert found == pytest.approx(expected, abs=0.02)

    def test_few_discordant_groups_are_counted_exactly(self):
        # 5 of 5 discordant groups in favour of one run: 2 of 2 ** 5 ways are as extreme.
        one, two = np.ones(50), np.r_[np.zeros(5), np.ones(45)]
        found = statistics.permutation_test(mean_of(one), mean_of(two), generator())
        assert found == pytest.approx(2 / 32)
        assert found == pytest.approx(statistics.mcnemar(5, 0))

    def test_denominators_are_swapped_with_their_numerators(self):
        # F1-like ratios: swapping only numerators would leave 0..1.
        rng = generator(4)
        above = [rng.integers(0, 2, (12, 1)).astype(float) for _ in range(2)]
        below = [each + rng.integers(0, 2, (12, 1)) for each in above]
        one, two = (Ratios(a, b, np.ones(1)) for a, b in zip(above, below, strict=True))
        observed = abs(one.value() - two.value())
        extreme = 0
        for swaps in range(2**12):
            mask = np.array([swaps >> bit & 1 for bit in range(12)], bool)[:, None]
            pair = [
                np.where(mask, x, y).sum() / np.where(mask, u, v).sum()
                for (x, u), (y, v) in (
                    ((above[0], below[0]), (above[1], below[1])),
                    ((above[1], below[1]), (above[0], below[0])),
                )
            ]
            extreme += abs(pair[0] - pair[1]) >= observed - 1e-12
        found = statistics.permutation_test(one, two, generator(), resamples=2**12)
        assert found == pytest.approx(extreme / 2**12)

    def test_equal_runs_do_not_differ(self, two_splits):
        assert statistics.permutation_test(two_splits, two_splits, generator()) == 1.0
        gap = statistics.difference(two_splits, two_splits)
        assert gap.value() == 0
        interval = statistics.bootstrap_interval(gap, generator())
        assert (interval.low, interval.high) == (0.0, 0.0)

    def test_null_gives_uniform_p(self):
        rng = generator(6)
        found = [
            statistics.permutation_test(
                mean_of(rng.integers(0, 2, 30)), mean_of(rng.integers(0, 2, 30)), rng, resamples=199
            )
            for _ in range(40)
        ]
        assert sum(p <= 0.05 for p in found) <= 7  # 2 expected; 8 or more has chance 0.0005

    def test_interval_of_a_difference_is_paired(self):
        rng = generator(7)
        one = rng.integers(0, 2, 400).astype(float)
        two = one.copy()
        two[:8] = 1 - two[:8]
        gap = statistics.difference(mean_of(one), mean_of(two))
        interval = statistics.bootstrap_interval(gap, generator())
        # 8 of 400 differ: the standard error is some sqrt(8) / 4 points, not that of two samples.
        assert interval.high - interval.low < 4 * 1.96 * math.sqrt(8) / 4
        assert interval.low <= gap.value() <= interval.high

    @pytest.mark.parametrize(("one", "two"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 20)])
    def test_mcnemar_is_the_exact_binomial(self, one, two):
        total = one + two
        tail = sum(math.comb(total, k) for k in range(min(one, two) + 1)) / 2**total
        assert statistics.mcnemar(one, two) == pytest.approx(min(1.0, 2 * tail))
        assert statistics.mcnemar(one, two) == statistics.mcnemar(two, one)

    def test_discordant_groups(self, two_splits):
        one, two = mean_of([1, 1, 0, 0, 1]), mean_of([1, 0, 1, 0, 0])
        assert statistics.discordant(one, two) == (2, 1)
        assert statistics.discordant(two_splits, two_splits) == (0, 0)
        assert statistics.discordant(mean_of([0.5]), mean_of([1])) is None
        pair = Ratios(np.array([[1.0]]), np.array([[2.0]]), np.ones(1))
        assert statistics.discordant(pair, pair) is None

    def test_other_groups_are_refused(self):
        with pytest.raises(ValueError, match="2 and 3 groups"):
            statistics.difference(mean_of([1, 0]), mean_of([1, 0, 1]))
        with pytest.raises(ValueError, match="other groups or ratios"):
            statistics.permutation_test(mean_of([1, 0]), mean_of([1, 0, 1]), generator())
        with pytest.raises(ValueError, match="none below 0"):
            statistics.mcnemar(-1, 2)
