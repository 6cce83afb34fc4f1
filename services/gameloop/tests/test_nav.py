"""Walking commands: limits, slew, time-out, and a person before a mission."""

import numpy as np
import pytest
from krabby_gameloop.config import FreshnessCfg, NavCfg
from krabby_gameloop.nav import NavFilter
from krabby_proto import FLAG_OPERATOR

MS = 1_000_000


@pytest.fixture
def nav_filter():
    return NavFilter(NavCfg(max_acc=1.0, max_yaw_acc=2.0), FreshnessCfg())


def run(nav_filter, start_ms, end_ms):
    for ms in range(start_ms, end_ms + 1, 10):
        command = nav_filter.step(ms * MS)
    return command


def test_nobody_asked_so_it_stands_still(nav_filter):
    np.testing.assert_array_equal(run(nav_filter, 0, 100), 0.0)


def test_speed_rises_by_the_allowed_acceleration(nav_filter, nav):
    nav_filter.step(0)
    nav_filter.receive(nav(0, (0.4, 0.0, 0.0)))
    # 1 m/s² for 100 ms
    np.testing.assert_allclose(run(nav_filter, 10, 100), [0.1, 0.0, 0.0], atol=1e-9)


def test_commands_beyond_the_limits_are_cut(nav_filter, nav):
    nav_filter.receive(nav(0, (9.0, -9.0, 9.0)))
    for ms in range(0, 3000, 10):
        nav_filter.receive(nav(ms * MS, (9.0, -9.0, 9.0)))
        command = nav_filter.step(ms * MS)
    np.testing.assert_allclose(command, [1.0, -0.4, 0.8])


def test_after_300_ms_of_silence_it_slows_to_a_stand(nav_filter, nav):
    nav_filter.step(0)
    nav_filter.receive(nav(0, (0.2, 0.0, 0.0)))
    assert run(nav_filter, 10, 300)[0] == pytest.approx(0.2)
    assert run(nav_filter, 310, 310)[0] == pytest.approx(0.19)
    assert run(nav_filter, 320, 600)[0] == 0.0


def test_a_late_tick_changes_the_command_by_50_ms_worth_at_most(nav_filter, nav):
    nav_filter.step(0)
    nav_filter.receive(nav(200 * MS, (1.0, 0.0, 0.0)))
    assert nav_filter.step(200 * MS)[0] == pytest.approx(0.05)


def test_a_person_outranks_a_mission_for_one_second(nav_filter, nav):
    nav_filter.step(0)
    nav_filter.receive(nav(0, (-0.1, 0.0, 0.0), flags=FLAG_OPERATOR))
    nav_filter.receive(nav(10 * MS, (0.5, 0.0, 0.0)))
    assert run(nav_filter, 10, 200)[0] == pytest.approx(-0.1)
    nav_filter.receive(nav(1000 * MS, (0.5, 0.0, 0.0)))
    assert run(nav_filter, 1000, 1020)[0] > -0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_commands_that_are_not_finite_are_left_out(nav_filter, nav, bad):
    nav_filter.step(0)
    assert not nav_filter.receive(nav(0, (bad, 0.0, 0.0)))
    np.testing.assert_array_equal(run(nav_filter, 10, 100), 0.0)


def test_a_command_stamped_by_a_clock_that_is_ahead_times_out_as_well(nav_filter, nav):
    # A person in lock-step: the keyboard's clock is not the simulated one.
    hour_ms = 3_600_000
    nav_filter.receive(nav(hour_ms * MS, (0.2, 0.0, 0.0), flags=FLAG_OPERATOR))
    assert run(nav_filter, 0, 300)[0] == pytest.approx(0.2)
    assert run(nav_filter, 310, 700)[0] == 0.0
    nav_filter.receive(nav(1000 * MS, (0.1, 0.0, 0.0), sequence=2))
    assert run(nav_filter, 1000, 1200)[0] == pytest.approx(0.1)
