"""Loop statistics: hand-worked counts over a fake clock."""

import pytest
from krabby.runtime.loop import LoopStats, WindowMax
from krabby.runtime.metrics import (
    DEADLINE_MISSES,
    LOOP_LATENESS_MAX,
    LOOP_PERIOD,
    SKIPPED_CYCLES,
)
from krabby.runtime.rate import Rate
from krabby.runtime.testing import FakeClock

MS = 1_000_000


def sample(metric, suffix):
    return next(s.value for s in metric.collect()[0].samples if s.name.endswith(suffix))


def test_counts_of_a_loop_that_misses_a_deadline_and_a_slot():
    clock = FakeClock(1_000 * MS)
    rate = Rate(0.010, clock=clock, sleep_until=clock.sleep_until)
    stats = LoopStats(rate)
    misses, skipped = sample(DEADLINE_MISSES, "_total"), sample(SKIPPED_CYCLES, "_total")
    periods = sample(LOOP_PERIOD, "_count")
    for work_s in (0.002, 0.002, 0.018, 0.002):  # the third ends 8 ms into the fourth slot
        stats.begin(rate.wait())
        clock.advance(work_s)
        stats.end(clock())
    assert stats.ticks == 4
    assert stats.deadline_misses == 1
    assert stats.skipped == 1
    assert stats.hz == pytest.approx(75.0)  # three periods from 1010 to 1050 ms
    assert sample(DEADLINE_MISSES, "_total") - misses == 1
    assert sample(SKIPPED_CYCLES, "_total") - skipped == 1
    assert sample(LOOP_PERIOD, "_count") - periods == 3
    assert stats.summary()["work_max_ms"] == 18.0
    assert stats.summary()["loop_hz"] == 75.0


def test_an_own_deadline_counts_instead_of_the_end_of_the_slot():
    clock = FakeClock(1_000 * MS)
    rate = Rate(0.010, clock=clock, sleep_until=clock.sleep_until)
    stats = LoopStats(rate)
    tick = rate.wait()
    stats.begin(tick)
    clock.advance(0.005)
    assert not stats.end(clock(), deadline_ns=tick.scheduled_ns + 4 * MS)


def test_rate_of_a_loop_that_ran_once_is_zero():
    clock = FakeClock()
    rate = Rate(0.010, clock=clock, sleep_until=clock.sleep_until)
    stats = LoopStats(rate)
    stats.begin(rate.wait())
    assert stats.hz == 0.0
    assert sample(LOOP_LATENESS_MAX, "_seconds") == 0.0


def test_the_worst_of_a_window_is_forgotten_after_two():
    worst = WindowMax(window_s=5.0)
    second = 1_000_000_000
    assert worst.add(0.3, 0)
    assert not worst.add(0.1, 1 * second)
    assert worst.maximum == 0.3
    worst.add(0.1, 6 * second)
    assert worst.maximum == 0.3
    worst.add(0.2, 12 * second)
    assert worst.maximum == 0.2
