"""Walking commands: limits, slew, time-out, stamps, and a person before a mission."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from krabby.control.config import FreshnessCfg, NavCfg
from krabby.control.nav import NavFilter
from krabby.runtime.testing import captured_logs
from krabby_proto import FLAG_OPERATOR, MAX_AHEAD_NS, NAV

MS = 1_000_000
HOUR = 3_600_000 * MS


class Clock:
    """The host's clock, which is also the loop's unless a test tells them apart."""

    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def nav_filter(clock):
    return NavFilter(NavCfg(max_acc=1.0, max_yaw_acc=2.0), FreshnessCfg(), host_clock=clock)


@pytest.fixture
def run(nav_filter, clock):
    """Step every 10 ms, both ends included; the last command."""

    def steps(start_ms, end_ms):
        for ms in range(start_ms, end_ms + 1, 10):
            clock.now_ns = ms * MS
            command = nav_filter.step(ms * MS)
        return command

    return steps


@pytest.fixture
def hear(nav_filter, nav, clock):
    """Receive a command at a time, captured then unless `stamp_ms` says otherwise."""
    sequence = 0

    def receive(now_ms, vx, *, operator=False, stamp_ms=None, writer=7):
        nonlocal sequence
        sequence += 1
        clock.now_ns = round(now_ms * MS)
        message = nav(
            round((now_ms if stamp_ms is None else stamp_ms) * MS),
            (vx, 0.0, 0.0),
            flags=FLAG_OPERATOR if operator else 0,
            sequence=sequence,
            instance_id=writer,
        )
        return nav_filter.receive(message, clock.now_ns)

    return receive


def test_without_a_command_it_stands_still(run):
    np.testing.assert_array_equal(run(0, 100), 0.0)


def test_speed_rises_by_the_allowed_acceleration(run, hear):
    run(0, 0)
    hear(0, 0.4)
    # 1 m/s² for 100 ms
    np.testing.assert_allclose(run(10, 100), [0.1, 0.0, 0.0], atol=1e-9)


def test_commands_beyond_the_limits_are_cut(nav_filter, nav):
    for ms in range(0, 3000, 10):
        nav_filter.receive(nav(ms * MS, (9.0, -9.0, 9.0)), ms * MS)
        command = nav_filter.step(ms * MS)
    np.testing.assert_allclose(command, [1.0, -0.4, 0.8])


def test_after_300_ms_of_silence_it_slows_to_a_stand(run, hear):
    run(0, 0)
    hear(0, 0.2)
    assert run(10, 300)[0] == pytest.approx(0.2)
    assert run(310, 310)[0] == pytest.approx(0.19)
    assert run(320, 600)[0] == 0.0


def test_a_late_tick_changes_the_command_by_50_ms_worth_at_most(run, hear):
    run(0, 0)
    hear(200, 1.0)
    assert run(200, 200)[0] == pytest.approx(0.05)


def test_a_person_outranks_a_mission_for_one_second(run, hear):
    run(0, 0)
    hear(0, -0.1, operator=True)
    hear(10, 0.5)
    assert run(10, 200)[0] == pytest.approx(-0.1)
    hear(990, 0.5)
    assert run(990, 990)[0] < 0.0, "slowing down, not yet the mission's"
    hear(1000, 0.5)
    assert run(1000, 1500)[0] > 0.0


def test_the_order_in_which_they_arrive_makes_no_difference_to_who_counts(run, hear):
    run(0, 0)
    hear(0, 0.5)
    hear(0, -0.1, operator=True)
    hear(0, 0.5)
    assert run(10, 200)[0] == pytest.approx(-0.1)


@pytest.mark.parametrize("ahead_ms", [1.001, 5_000, HOUR / MS])
@pytest.mark.parametrize("operator", [False, True])
def test_a_command_stamped_more_than_1_ms_ahead_is_refused_by_how_much(
    run, hear, ahead_ms, operator
):
    assert MAX_AHEAD_NS == MS
    run(0, 0)
    refusal = hear(10, 0.4, stamp_ms=10 + ahead_ms, operator=operator)
    assert refusal.reason == "future"
    assert refusal.age_s == pytest.approx(-ahead_ms / 1e3)
    np.testing.assert_array_equal(run(10, 500), 0.0)


def test_a_command_stamped_1_ms_ahead_is_taken(run, hear):
    assert hear(0, 0.4, stamp_ms=1) is None
    assert run(0, 100)[0] == pytest.approx(0.1)


def test_a_publish_time_that_lies_ahead_is_refused_as_well(nav_filter, nav):
    message = nav(0)
    message = message._replace(header=message.header._replace(publish_ns=2 * MS))
    assert nav_filter.receive(message, 0).reason == "future"


def test_a_command_older_than_300_ms_when_it_is_read_is_left_out(run, hear):
    run(0, 400)
    assert hear(400, 0.4, stamp_ms=100) is None
    refusal = hear(400, 0.4, stamp_ms=99)
    assert (refusal.reason, refusal.age_s) == ("stale", pytest.approx(0.301))


@pytest.mark.parametrize("stamp_ms", [100 + HOUR / MS, 100 + 10_000])
def test_a_mission_from_the_future_does_not_outrank_a_person_who_says_stop(run, hear, stamp_ms):
    run(0, 100)
    for now_ms in range(100, 3000, 50):
        hear(now_ms, 0.0, operator=True, writer=1)
        hear(now_ms + 10, 0.9, stamp_ms=now_ms + stamp_ms, writer=2)
        np.testing.assert_array_equal(run(now_ms + 10, now_ms + 40), 0.0)


@pytest.mark.parametrize("stamp_ms", [-10_000, 10_000_000])
def test_a_person_whose_clock_is_not_ours_stops_the_mission_and_moves_nothing(run, hear, stamp_ms):
    for now_ms in range(20_000, 21_000, 50):
        hear(now_ms, 0.3)
        run(now_ms, now_ms + 40)
    assert run(21_000, 21_000)[0] == pytest.approx(0.3)
    for now_ms in range(21_000, 22_000, 50):
        assert hear(now_ms, 0.6, operator=True, stamp_ms=now_ms + stamp_ms) is not None
        hear(now_ms, 0.3)
        command = run(now_ms, now_ms + 40)
    np.testing.assert_array_equal(command, 0.0)


def test_a_backlog_does_not_displace_what_is_newer(run, hear):
    run(0, 200)
    hear(200, -0.1, operator=True, writer=1)
    for stamp_ms in range(0, 200, 10):
        hear(200, 0.9, operator=True, stamp_ms=stamp_ms, writer=2)
    hear(200, 0.9, stamp_ms=190, writer=3)
    assert run(210, 400)[0] == pytest.approx(-0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", range(3))
def test_commands_that_are_not_finite_are_refused(nav_filter, nav, run, bad, axis):
    command = np.zeros(3)
    command[axis] = bad
    assert nav_filter.receive(nav(0, command), 0).reason == "nonfinite"
    np.testing.assert_array_equal(run(0, 100), 0.0)


def test_in_lock_step_a_person_is_judged_by_the_hosts_clock(nav_filter, nav, clock):
    # Simulated time begins at 0 and stands still for as long as a turn takes; the host's does not.
    clock.now_ns = HOUR
    assert nav_filter.receive(nav(HOUR, (0.2, 0, 0), flags=FLAG_OPERATOR), 0) is None
    for ms in range(0, 1000, 10):
        command = nav_filter.step(ms * MS)
    assert command[0] == pytest.approx(0.2), "a second of simulated time in none of the host's"
    assert nav_filter.receive(nav(990 * MS, (0.5, 0, 0)), 990 * MS) is None
    assert nav_filter.step(1000 * MS)[0] == pytest.approx(0.2), "a person outranks a mission"
    clock.now_ns += 301 * MS
    assert nav_filter.step(1010 * MS)[0] < 0.2
    refusal = nav_filter.receive(nav(1010 * MS, (0.2, 0, 0), flags=FLAG_OPERATOR), 1010 * MS)
    assert refusal.reason == "stale", "a person's stamp on the simulated clock"
    clock.now_ns += 1000 * MS
    assert nav_filter.receive(nav(1020 * MS, (0.5, 0, 0)), 1020 * MS) is None
    assert nav_filter.step(1020 * MS)[0] > 0.19
    assert nav_filter.source == "mission"


def test_in_lock_step_a_mission_on_the_hosts_clock_is_refused(nav_filter, nav, clock):
    clock.now_ns = HOUR
    assert nav_filter.receive(nav(HOUR, (0.2, 0, 0)), 0).reason == "future"


def test_a_mission_goes_on_when_simulated_time_starts_again(nav_filter, nav):
    nav_filter.receive(nav(900 * MS, (0.5, 0, 0)), 900 * MS)
    nav_filter.step(900 * MS)
    nav_filter.step(0)
    assert nav_filter.source == "none", "a command of the time before"
    assert nav_filter.receive(nav(10 * MS, (0.2, 0, 0)), 10 * MS) is None
    assert nav_filter.step(10 * MS)[0] == pytest.approx(0.01)


def test_who_drives_is_told_and_the_end_of_a_person_is_a_warning(nav_filter, run, hear):
    with captured_logs() as logs:
        run(0, 0)
        assert nav_filter.source == "none"
        hear(0, 0.5)
        run(10, 10)
        assert nav_filter.source == "mission"
        hear(20, 0.1, operator=True)
        run(20, 500)
        assert nav_filter.source == "operator", "silent for 0.48 s, and still no mission's turn"
        hear(1010, 0.5)
        run(1010, 1010)
        assert nav_filter.source == "operator"
        run(1020, 1020)
        assert nav_filter.source == "mission"
        run(1320, 1320)
        assert nav_filter.source == "none"
    said = [(each["log_level"], each["now"], each["before"]) for each in logs]
    assert said == [
        ("info", "mission", "none"),
        ("info", "operator", "mission"),
        ("warning", "mission", "operator"),
        ("info", "none", "mission"),
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),  # received after the one before [ms]
            st.one_of(st.integers(-2000, 2000), st.integers(-(1 << 40), 1 << 40)),  # off by [ms]
            st.sampled_from([0.5, -0.5, np.nan, np.inf]),
        ),
        max_size=20,
    )
)
def test_no_mission_moves_the_robot_against_a_person_who_says_stop(message, missions):
    clock = Clock()
    clock.now_ns = 1 << 62
    nav_filter = NavFilter(NavCfg(), FreshnessCfg(), host_clock=clock)
    for after_ms, off_ms, vx in missions:
        clock.now_ns += after_ms * MS
        stop = message(NAV, np.zeros(3, np.float32), clock.now_ns, flags=FLAG_OPERATOR)
        walk = message(NAV, np.array([vx, 0, 0], np.float32), clock.now_ns + off_ms * MS)
        nav_filter.receive(stop, clock.now_ns)
        nav_filter.receive(walk, clock.now_ns)
        np.testing.assert_array_equal(nav_filter.step(clock.now_ns), 0.0)


def test_what_was_sent_before_it_forgot_does_not_count_when_it_arrives_later(run, hear, nav_filter):
    hear(0, 0.4, operator=True)
    assert run(0, 100)[0] > 0.0
    nav_filter.forget(100 * MS)
    hear(110, 0.4, operator=True, stamp_ms=100)
    np.testing.assert_array_equal(run(110, 200), 0.0)
    hear(201, 0.4, operator=True)
    assert run(210, 300)[0] > 0.0


def test_a_mission_is_forgotten_too(run, hear, nav_filter):
    run(0, 0)
    hear(0, 0.4)
    nav_filter.forget(50 * MS)
    hear(60, 0.4, stamp_ms=50)
    np.testing.assert_array_equal(run(60, 200), 0.0)
    hear(201, 0.4)
    assert run(210, 300)[0] > 0.0


def test_what_was_forgotten_on_an_older_simulated_clock_bars_nothing(run, hear, nav_filter):
    nav_filter.forget(10_000 * MS)
    run(0, 0)
    hear(0, 0.4)
    assert run(10, 100)[0] > 0.0


def test_after_it_forgot_a_person_still_outranks_a_mission(run, hear, nav_filter):
    hear(0, 0.4, operator=True)
    nav_filter.forget(10 * MS)
    hear(500, 0.4)  # 1 s is the person's
    np.testing.assert_array_equal(run(500, 600), 0.0)


@pytest.fixture
def within():
    return np.array([[-0.2, 0.0, -0.5], [0.6, 0.0, 0.5]])


def test_a_command_beyond_the_range_of_the_policy_is_cut_counted_and_logged_once(
    nav_filter, nav, clock, within
):
    with captured_logs() as logs:
        for ms in range(0, 1000, 10):
            clock.now_ns = ms * MS
            nav_filter.receive(nav(clock.now_ns, (-0.4, 0.3, 0.1), sequence=ms + 1), clock.now_ns)
            command = nav_filter.step(clock.now_ns, within)
    np.testing.assert_allclose(command, [-0.2, 0.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(nav_filter.asked, [-0.4, 0.3, 0.1], atol=1e-6)
    assert nav_filter.clamped == ("vx", "vy")
    assert nav_filter.clamped_steps == {"vx": 100, "vy": 100, "yaw_rate": 0}
    clamped = [each for each in logs if each["event"] == "walking command clamped"]
    assert [(each["axis"], each["asked"], each["low"], each["high"]) for each in clamped] == [
        ("vx", -0.4, -0.2, 0.6),
        ("vy", 0.3, 0.0, 0.0),
    ]


def test_a_command_at_the_limit_in_float32_is_not_cut(nav_filter, nav, within):
    # float32(0.6) is 0.60000002
    nav_filter.receive(nav(0, (0.6, 0.0, 0.5)), 0)
    nav_filter.step(0, within)
    assert nav_filter.clamped == ()


def test_a_halt_slows_down_by_the_allowed_deceleration(nav_filter, hear, run, clock, within):
    run(0, 0)
    hear(0, 0.5)
    run(10, 290)
    assert nav_filter.command[0] == pytest.approx(0.29)
    clock.now_ns = 300 * MS
    # 1 m/s² for 10 ms
    assert nav_filter.step(300 * MS, within, halt=True)[0] == pytest.approx(0.28)
    assert nav_filter.clamped == ()
