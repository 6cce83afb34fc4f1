"""The slope of memory over a soak."""

import numpy as np
import pytest
from krabby_faults.soak import theil_sen

HOURS = np.arange(20) / 60.0


def test_a_steady_growth_is_found_with_an_interval_without_width():
    assert theil_sen(HOURS, 50.0 + 3.0 * HOURS) == pytest.approx((3.0, 3.0, 3.0))


def test_what_a_fault_takes_and_gives_back_is_no_growth():
    sizes = np.full(20, 50.0)
    sizes[[3, 11]] = 58.0
    assert theil_sen(HOURS, sizes)[0] == 0.0


def test_a_page_more_each_minute_is_a_quarter_of_a_megabyte_an_hour():
    # 4096 bytes a minute are 0.24576 MB an hour, a quarter of what is allowed.
    slope, low, high = theil_sen(HOURS, np.arange(20) * 4096e-6)
    assert slope == pytest.approx(0.24576)
    assert low == pytest.approx(high)


def test_the_interval_is_that_of_the_ranks():
    # Five points, ten pairs: Kendall's S varies by 1.96 * sqrt(5 * 4 * 15 / 18) = 8.0, so the
    # interval runs from the (10 - 8) / 2 = 1st to the 10th of the slopes, which are -1, -1, 1/3,
    # 1/2, 3/4, 1, 1, 4/3, 2, 3.
    sizes = np.array([0.0, 2.0, 1.0, 4.0, 3.0])
    assert theil_sen(np.arange(5.0), sizes) == pytest.approx((0.875, -1.0, 3.0))
