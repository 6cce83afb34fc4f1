"""Every outcome, with trials made up tick by tick."""

import math

import pytest
from krabby.benchmark.outcome import Judge, Outcome, succeeded
from krabby.benchmark.scenario import Event
from krabby.control.modes import Mode
from krabby_proto.states import Fault, SafetyState


def run(judge, make_tick, seconds, *, start_s=0.0, **changes):
    """Feed ticks; the outcome and the time of the tick that decided, or (None, end)."""
    for i in range(round(seconds / 0.01)):
        time_s = start_s + 0.01 * i
        now = {k: v(time_s) if callable(v) else v for k, v in changes.items()}
        outcome = judge.tick(make_tick(time_s, **now))
        if outcome is not None:
            return outcome, time_s
    return None, start_s + seconds


def test_the_last_waypoint_is_the_success(make_facts, make_tick):
    judge = Judge(make_facts())
    outcome, at_s = run(judge, make_tick, 60.0, waypoint=lambda t: int(t / 20.0))
    assert (outcome, judge.reason) == (Outcome.SUCCESS, "")
    assert at_s == pytest.approx(40.0)


def test_waypoints_time_out_at_1_5_times_what_the_speed_needs(make_facts, make_tick):
    # 20 m at 0.5 m/s need 40 s; at 0.3 m/s 18 m are walked in 60 s
    judge = Judge(make_facts())
    outcome, at_s = run(judge, make_tick, 70.0, progress_m=lambda t: 0.3 * t)
    assert outcome == Outcome.TIMED_OUT
    assert at_s == pytest.approx(60.0, abs=0.02)
    assert "1.5 times" in judge.reason


def test_the_clock_stops_while_no_motion_is_asked_for(make_facts, make_tick):
    judge = Judge(make_facts())
    waiting = dict(walks=False, progress_m=0.0, asked=[0.0, 0.0, 0.0])
    assert run(judge, make_tick, 30.0, **waiting) == (None, 30.0)
    late = dict(start_s=30.0, progress_m=lambda t: 0.3 * (t - 30.0))
    assert run(judge, make_tick, 59.0, **late)[0] is None


def test_a_box_in_the_way_adds_its_time(make_facts, make_tick):
    box = Event(action="box", at_m=5.0, value=2.0, duration_s=10.0)
    judge = Judge(make_facts(events=(box,)))
    assert run(judge, make_tick, 69.0, progress_m=lambda t: 0.25 * t)[0] is None


def test_tilt_beyond_the_gates_limit_is_a_fall(make_facts, make_tick):
    judge = Judge(make_facts())
    assert judge.tick(make_tick(0.0, tilt_rad=0.99)) is None
    assert judge.tick(make_tick(0.01, tilt_rad=1.01)) == Outcome.FELL
    assert judge.reason == "tilt (58 deg)"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(in_pit=True), "in a pit"),
        (dict(diverged=True), "the physics diverged"),
        (
            dict(safety=SafetyState.DAMP, faults=int(Fault.EFFORT_BUDGET)),
            "made limp by the safety gate: EFFORT_BUDGET",
        ),
    ],
)
def test_what_else_is_a_fall(make_facts, make_tick, changes, reason):
    judge = Judge(make_facts())
    assert judge.tick(make_tick(0.0, **changes)) == Outcome.FELL
    assert judge.reason.startswith(reason)


def test_before_go_nothing_is_judged(make_facts, make_tick):
    assert Judge(make_facts()).tick(make_tick(-0.5, in_pit=True)) is None


def test_half_a_second_on_the_trunk_with_legs_stretched_is_a_fall(make_facts, make_tick):
    judge = Judge(make_facts())
    outcome, at_s = run(judge, make_tick, 2.0, body_contact=True)
    assert (outcome, at_s) == (Outcome.FELL, pytest.approx(0.5))
    assert judge.reason.startswith("base on the ground")


def test_hanging_with_the_legs_drawn_in_is_no_fall_but_no_success(make_facts, make_tick):
    judge = Judge(make_facts())
    outcome, at_s = run(judge, make_tick, 2.0, body_contact=True, stance_m=0.1)
    assert (outcome, at_s) == (Outcome.LEANING, pytest.approx(0.5, abs=0.011))


def test_a_brush_of_the_trunk_is_forgiven(make_facts, make_tick):
    judge = Judge(make_facts())
    assert run(judge, make_tick, 10.0, body_contact=lambda t: t % 1.0 < 0.45)[0] is None


def test_lying_after_an_emergency_stop_is_no_fall(make_facts, make_tick):
    judge = Judge(make_facts())
    lying = dict(
        body_contact=True, stance_m=0.0, walks=False, mode=Mode.PASSIVE,
        safety=SafetyState.ESTOP, faults=int(Fault.ESTOP),
    )  # fmt: skip
    assert run(judge, make_tick, 8.0, **lying)[0] is None


def test_scrabbling_before_a_step_is_stuck_after_5_s(make_facts, make_tick):
    judge = Judge(make_facts())
    outcome, at_s = run(judge, make_tick, 20.0, progress_m=lambda t: min(0.5 * t, 4.0))
    assert outcome == Outcome.STUCK
    # 4 m after 8 s; the last whole 0.1 m was reached then
    assert at_s == pytest.approx(13.0, abs=0.25)
    assert judge.reason == "no progress for 5 s at 4.0 m"


def test_standing_still_before_a_step_is_refused(make_facts, make_tick):
    judge = Judge(make_facts())
    still = make_tick().joint_vel * 0.01
    outcome, at_s = run(judge, make_tick, 20.0, progress_m=0.0, joint_vel=still)
    assert (outcome, at_s) == (Outcome.REFUSED, pytest.approx(5.0, abs=0.02))
    assert not succeeded("waypoints", outcome)


def test_a_release_is_not_being_stuck(make_facts, make_tick):
    judge = Judge(make_facts())
    assert run(judge, make_tick, 4.9, progress_m=0.0)[0] is None
    assert run(judge, make_tick, 20.0, start_s=4.9, progress_m=0.0, walks=False)[0] is None
    assert run(judge, make_tick, 1.0, start_s=24.9, progress_m=0.0)[0] == Outcome.STUCK


def test_turning_on_the_spot_is_progress(make_facts, make_tick):
    judge = Judge(make_facts())
    turn = dict(progress_m=0.0, asked=[0.0, 0.0, 0.5], base_ang_vel_b=[0.0, 0.0, 0.2])
    assert run(judge, make_tick, 10.0, **turn)[0] is None


def test_turning_the_wrong_way_is_none(make_facts, make_tick):
    judge = Judge(make_facts())
    turn = dict(progress_m=0.0, asked=[0.0, 0.0, -0.5], base_ang_vel_b=[0.0, 0.0, 0.2])
    assert run(judge, make_tick, 10.0, **turn)[0] == Outcome.STUCK


def test_an_impassable_obstacle_is_won_by_standing_off(make_facts, make_tick):
    # Two waypoints, 10 m and 20 m ahead, one of them beyond the obstacle: 10 - 1.2 = 8.8 m.
    judge = Judge(make_facts("stand_off"))
    assert run(judge, make_tick, 30.0, progress_m=8.9) == (None, 30.0)
    assert judge.at_end() == Outcome.REFUSED
    assert succeeded("stand_off", Outcome.REFUSED)


def test_a_robot_that_never_came_to_the_obstacle_has_not_stood_off(make_facts, make_tick):
    judge = Judge(make_facts("stand_off"))
    assert run(judge, make_tick, 30.0, progress_m=8.7) == (None, 30.0)
    assert judge.at_end() == Outcome.MISSED
    assert judge.reason == "came to 8.7 m; the obstacle counts from 8.8 m on"
    assert not succeeded("stand_off", Outcome.MISSED)


def test_a_box_that_never_appeared_has_not_been_stood_off(make_facts, make_tick):
    box = Event(action="box", at_m=3.0, value=2.0)
    for progress_m, outcome in ((2.9, Outcome.MISSED), (3.0, Outcome.REFUSED)):
        judge = Judge(make_facts("stand_off", events=(box,)))
        assert run(judge, make_tick, 30.0, progress_m=progress_m) == (None, 30.0)
        assert judge.at_end() == outcome


def test_rearing_up_on_a_wall_is_leaning(make_facts, make_tick):
    judge = Judge(make_facts("stand_off"))
    outcome, _ = run(judge, make_tick, 5.0, tilt_rad=math.radians(41.0))
    assert outcome == Outcome.LEANING
    assert judge.reason == "tilt 41 deg against the obstacle"
    # On a slope that is to be walked the same tilt is allowed.
    assert run(Judge(make_facts()), make_tick, 4.0, tilt_rad=math.radians(41.0))[0] is None


@pytest.mark.parametrize("changes", [dict(box_contact=True), dict(waypoint=2)])
def test_going_past_or_touching_the_person_is_crossed(make_facts, make_tick, changes):
    outcome = Judge(make_facts("stand_off")).tick(make_tick(0.0, **changes))
    assert outcome == Outcome.CROSSED
    assert not succeeded("stand_off", outcome)


def test_a_command_is_tracked_within_5_cm_per_s_and_a_tenth(make_facts, make_tick, command):
    # 0.5 m/s asked: 0.05 + 0.05 = 0.10 allowed. 0.13 m/s off, filtered, is from 1 s to 30 s on
    # average 0.13 (1 - 0.5 exp(-2) / 29) = 0.1297.
    for vx, outcome in ((0.41, Outcome.SUCCESS), (0.37, Outcome.MISSED)):
        judge = Judge(make_facts("track", commands=command(vx=0.5)))
        assert run(judge, make_tick, 30.0, base_lin_vel_b=[vx, 0.0, 0.0])[0] is None
        assert judge.at_end() == outcome
    assert judge.reason.startswith("vx off by 0.130, bound 0.100")


def test_a_command_that_is_not_followed_at_all_is_stuck(make_facts, make_tick, command):
    judge = Judge(make_facts("track", commands=command(vx=-0.3)))
    outcome, at_s = run(
        judge, make_tick, 30.0, asked=[-0.3, 0.0, 0.0], base_lin_vel_b=[0.0, 0.0, 0.0]
    )
    assert (outcome, at_s) == (Outcome.STUCK, pytest.approx(5.0, abs=0.02))


def test_standing_allows_5_mm_per_s(make_facts, make_tick):
    for speed, outcome in ((0.004, Outcome.SUCCESS), (0.006, Outcome.MISSED)):
        judge = Judge(make_facts("stand"))
        stand = dict(
            walks=False, asked=[0.0, 0.0, 0.0], base_pos_w=lambda t, v=speed: (v * t, 0.0, 0.4)
        )
        assert run(judge, make_tick, 20.0, **stand)[0] is None
        assert judge.at_end() == outcome
    assert judge.reason == "drifts by 6.0 mm/s, bound 5 mm/s"
