"""Intervals against published tables and hand calculations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.benchmark import intervals
from krabby.benchmark.intervals import Estimate


def test_share_of_62_in_64_has_its_wilson_interval():
    # centre (62 + 1.9208) / (64 + 3.8415) = 0.94221, half width 0.04914
    found = intervals.share(62, 64)
    assert found.value == 62 / 64
    assert (found.low, found.high) == pytest.approx((0.8930, 0.9914), abs=5e-5)


def test_no_failure_in_64_still_leaves_5_7_percent():
    assert intervals.share(64, 64).low == pytest.approx(64 / 67.8415, abs=1e-5)
    assert intervals.share(64, 64).high == 1.0
    assert intervals.share(0, 64).high == pytest.approx(3.8415 / 67.8415, abs=1e-5)


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(ValueError, match="5 successes of 4"):
        intervals.share(5, 4)


def test_a_difference_of_shares_has_newcombes_interval():
    # Newcombe 1998, table II: 56 of 70 minus 48 of 80 is 0.2, [0.0524, 0.3339]
    found = intervals.difference(intervals.share(56, 70), intervals.share(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.n == 70


@pytest.mark.parametrize(
    ("events", "low", "high"),  # Garwood's table
    [(0, 0.0, 3.689), (1, 0.025, 5.572), (3, 0.619, 8.767), (10, 4.795, 18.390)],
)
def test_poisson_intervals_are_the_exact_ones(events, low, high):
    found = intervals.poisson_rate(events, 2.0, 7)
    assert (found.value, found.n) == (events / 2.0, 7)
    assert (2.0 * found.low, 2.0 * found.high) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (100, 1.984), (5000, 1.960)],
)
def test_student_quantiles_are_those_of_the_table(freedom, quantile):
    assert intervals.student_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def test_mean_of_four_values():
    # mean 2.5, s 1.29099, half width 3.18245 x 1.29099 / 2 = 2.05426
    found = intervals.mean([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 0.44574, 4.55426), abs=1e-5)


def test_a_ratio_weighs_trials_by_their_exposure():
    # 1 in 1 m and 1 in 3 m are 2 in 4 m; residuals 0.5 and -0.5: half 12.706 x 1 / 4
    found = intervals.ratio([1.0, 1.0], [1.0, 3.0])
    assert (found.value, found.n) == (0.5, 2)
    assert found.high == pytest.approx(0.5 + 12.7062 * math.sqrt(2 * 0.5) / 4, abs=1e-4)


def test_a_bounded_ratio_keeps_its_interval_within_the_bounds():
    found = intervals.ratio([0.0, 1.0], [1.0, 1.0], low=0.0, high=1.0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_one_trial_has_no_interval():
    found = intervals.mean([3.0])
    assert found.value == 3.0
    assert found.text() == "3.00 [no interval] (n 1)"


def test_an_estimate_reads_as_value_interval_and_n():
    assert str(intervals.share(248, 256)) == "0.97 [0.94, 0.98] (n 256)"
    assert Estimate(0.005, 0.001, 0.0091, 12).text(1, scale=1000.0) == "5.0 [1.0, 9.1] (n 12)"


def test_quantile_counts_all_values_of_all_trials():
    # 99 x 1.0 and 1 x 3.0: 99 % do not exceed 1.0; with one more of 3.0 they exceed it
    values = np.array([1.0, 3.0])
    assert intervals.quantile(np.array([[50, 0], [49, 1]]), values, 0.99).value == 1.0
    found = intervals.quantile(np.array([[50, 1], [49, 1]]), values, 0.99)
    assert (found.value, found.n) == (3.0, 2)
    assert math.isnan(found.low)  # two trials are too few for a bootstrap


def test_the_interval_of_a_quantile_is_over_trials():
    # One of ten trials has all the blows: without it in the draw, 35 % of them, there is none.
    counts = np.array([[100, 0]] * 9 + [[50, 50]])
    found = intervals.quantile(counts, np.array([1.0, 3.0]), 0.99)
    assert (found.value, found.low, found.high, found.n) == (3.0, 1.0, 3.0, 10)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10)), min_size=2, max_size=30),
    st.randoms(),
)
def test_the_order_of_trials_changes_no_digit(pairs, random):
    shuffled = pairs[:]
    random.shuffle(shuffled)
    a, b = (intervals.ratio(*zip(*given, strict=True)) for given in (pairs, shuffled))
    assert a == b


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=2, max_size=8),
    st.randoms(),
)
def test_the_order_of_trials_changes_no_quantile(rows, random):
    values = np.array([0.1, 0.2, 0.3])
    shuffled = rows[:]
    random.shuffle(shuffled)
    a, b = (intervals.quantile(np.array(given), values, 0.9) for given in (rows, shuffled))
    assert a.as_json() == b.as_json()
