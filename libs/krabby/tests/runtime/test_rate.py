"""The absolute grid: phase kept, slots skipped and counted, no drift."""

import time

import pytest
from krabby.runtime.rate import Rate, sleep_until_ns
from krabby.runtime.testing import FakeClock

MS = 1_000_000


def rate_on(clock, period_s=0.010, **options):
    return Rate(period_s, clock=clock, sleep_until=clock.sleep_until, **options)


def test_slots_lie_on_multiples_of_the_period_plus_the_phase():
    clock = FakeClock(1_234 * MS)
    rate = rate_on(clock, phase_s=0.0012)
    assert rate.next_deadline_ns == 1_241_200_000  # 124 periods of 10 ms, plus 1.2 ms
    assert [rate.wait().scheduled_ns for _ in range(3)] == [
        1_241_200_000,
        1_251_200_000,
        1_261_200_000,
    ]


def test_two_processes_started_at_different_times_keep_a_fixed_phase_relation():
    early, late = FakeClock(1_000_003_333), FakeClock(77_654_321_111)
    state = rate_on(early, 0.005)
    policy = rate_on(late, 0.010, phase_s=0.0012)
    assert state.wait().scheduled_ns % (5 * MS) == 0
    assert policy.wait().scheduled_ns % (10 * MS) == 1_200_000


def test_waking_late_is_told_and_does_not_move_the_grid():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock)
    clock.oversleep_ns = 3 * MS
    ticks = [rate.wait() for _ in range(3)]
    assert [tick.lateness_s for tick in ticks] == pytest.approx([0.003] * 3)
    assert [tick.scheduled_ns for tick in ticks] == [1_010 * MS, 1_020 * MS, 1_030 * MS]
    assert rate.skipped == 0


def test_a_slot_missed_by_less_than_half_a_period_is_run_late():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock)
    rate.wait()  # 1010
    clock.advance(0.014)  # work until 1024, 4 ms into the next slot
    tick = rate.wait()
    assert (tick.scheduled_ns, tick.woke_ns, tick.skipped) == (1_020 * MS, 1_024 * MS, 0)
    assert rate.wait().scheduled_ns == 1_030 * MS


def test_missed_slots_are_skipped_and_counted_and_the_phase_stays():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock)
    rate.wait()  # 1010
    clock.advance(0.037)  # until 1047: 1020 and 1030 gone, 1040 missed by 7 ms
    tick = rate.wait()
    assert (tick.scheduled_ns, tick.skipped) == (1_050 * MS, 3)
    assert (rate.skipped, rate.ticks) == (3, 2)


def test_oversleeping_whole_slots_counts_them_and_runs_the_newest():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock)
    clock.oversleep_ns = 23 * MS  # sleeps for 1010, wakes at 1033
    tick = rate.wait()
    assert (tick.scheduled_ns, tick.skipped) == (1_030 * MS, 2)
    assert tick.lateness_s == pytest.approx(0.003)
    assert rate.next_deadline_ns == 1_040 * MS


def test_without_grace_an_overrun_slot_is_always_skipped():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock, grace=0.0)
    rate.wait()
    clock.advance(0.0101)
    assert rate.wait().scheduled_ns == 1_030 * MS


def test_sleep_interrupted_early_goes_on():
    clock = FakeClock(1_000 * MS)

    def nap(deadline_ns):
        clock.now_ns = min(clock.now_ns + 4 * MS, deadline_ns)

    tick = Rate(0.010, clock=clock, sleep_until=nap).wait()
    assert tick.woke_ns == 1_010 * MS


def test_a_million_ticks_do_not_drift():
    clock = FakeClock(0)
    rate = rate_on(clock, 1 / 100)
    clock.oversleep_ns = 123_457
    for _ in range(1_000_000):
        tick = rate.wait()
    assert tick.scheduled_ns == 1_000_000 * 10 * MS
    assert (rate.ticks, rate.skipped) == (1_000_000, 0)


def test_reset_forgets_a_pause_on_purpose():
    clock = FakeClock(1_000 * MS)
    rate = rate_on(clock)
    rate.wait()
    clock.advance(5.0)
    rate.reset()
    tick = rate.wait()
    assert (tick.scheduled_ns, tick.skipped) == (6_020 * MS, 0)


@pytest.mark.parametrize("period", [0.0, -1.0, 1e-12])
def test_a_period_that_is_none_is_refused(period):
    with pytest.raises(ValueError, match="period must be positive"):
        Rate(period)


def test_grace_of_a_whole_period_is_refused():
    with pytest.raises(ValueError, match="grace"):
        Rate(0.01, grace=1.0)


def test_the_real_sleep_never_returns_early():
    for _ in range(20):
        deadline = time.monotonic_ns() + MS
        sleep_until_ns(deadline)
        assert time.monotonic_ns() >= deadline


def test_the_real_clock_meets_the_grid():
    rate = Rate(0.002, phase_s=0.0005)
    for _ in range(20):
        tick = rate.wait()
        assert tick.scheduled_ns % (2 * MS) == MS // 2
        assert tick.woke_ns >= tick.scheduled_ns
