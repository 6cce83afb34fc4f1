"""Every figure, with numbers worked by hand."""

import math

import numpy as np
import pytest
from krabby.benchmark.aggregate import FIGURES, estimate
from krabby.benchmark.figures import (
    Figures,
    contacts,
    debounce,
    needed_s,
    swing_heights,
)

WEIGHT_N = 98.1
BY_NAME = {figure.name: figure for figure in FIGURES}


def measured(make_facts, make_tick, seconds=4.0, goal="waypoints", **changes):
    """Sums of a trial."""
    figures = Figures(make_facts(goal))
    for i in range(round(seconds / 0.01)):
        now = {k: v(0.01 * i) if callable(v) else v for k, v in changes.items()}
        figures.tick(make_tick(0.01 * i, **now))
    return figures.figures()


def value(name, *trials):
    found = estimate(BY_NAME[name], trials)
    return None if found is None else found.value


def test_cost_of_transport_is_power_over_weight_and_speed(make_facts, make_tick):
    # 18 joints x 10 N·m x 1 rad/s = 180 W; the low-pass of 0.5 m/s over 40 s walks 0.25 m less
    # than 20 m: 7200 J / (98.1 N x 19.755 m) = 3.715
    found = measured(make_facts, make_tick, 40.0)
    assert found["energy"] == pytest.approx(7200.0)
    assert found["walked_m"] == pytest.approx(19.755, abs=0.01)
    assert value("cost_of_transport", found) == pytest.approx(3.715, abs=0.002)
    assert value("power", found) == pytest.approx(180.0)


def test_turning_on_the_spot_costs_no_transport(make_facts, make_tick):
    found = measured(make_facts, make_tick, asked=[0.0, 0.0, 0.5])
    assert value("cost_of_transport", found) is None
    assert value("power", found) == pytest.approx(180.0)


def test_power_counts_braking_as_work(make_facts, make_tick):
    found = measured(make_facts, make_tick, joint_vel=-np.ones((4, 18)))
    assert value("power", found) == pytest.approx(180.0)


def test_a_trial_before_go_has_no_figures(make_facts, make_tick):
    figures = Figures(make_facts())
    figures.tick(make_tick(-1.0))
    assert figures.figures()["time_s"] == 0.0
    assert value("cost_of_transport", figures.figures()) is None


def test_tracking_error_is_that_of_the_low_passed_velocity(make_facts, make_tick):
    # 0.1 m/s too slow from the start: the error rises as 0.1 (1 - exp(-t / 0.5)); its mean from
    # 1 s to 5 s is 0.1 (1 - 0.5 (exp(-2) - exp(-10)) / 4) = 0.0983
    found = measured(make_facts, make_tick, 5.0, base_lin_vel_b=[0.4, 0.0, 0.0])
    assert value("error_vx", found) == pytest.approx(0.0983, abs=3e-4)
    assert value("error_vy", found) == 0.0
    assert value("walked_vx", found) == pytest.approx(0.4 * 0.983, abs=2e-3)


def test_sway_at_2_hz_is_mostly_filtered(make_facts, make_tick):
    # amplitude 0.2 / sqrt(1 + (2 pi 2 x 0.5)^2) = 0.0314, mean of its magnitude 2 / pi of that
    found = measured(
        make_facts, make_tick, 11.0,
        base_lin_vel_b=lambda t: (0.5, 0.2 * math.sin(4.0 * math.pi * t), 0.0),
    )  # fmt: skip
    assert value("error_vy", found) == pytest.approx(0.0200, abs=5e-4)


def test_a_share_of_trials_obeys(make_facts, make_tick):
    good = measured(make_facts, make_tick, 5.0, "track")
    bad = measured(make_facts, make_tick, 5.0, "track", base_ang_vel_b=[0.0, 0.0, 0.1])
    found = estimate(BY_NAME["obeys"], [good, good, good, bad])
    assert (found.value, found.n) == (0.75, 4)


def test_drift_is_the_way_from_the_first_second_to_the_end(make_facts, make_tick):
    stand = dict(walks=False, asked=[0.0, 0.0, 0.0])
    found = measured(
        make_facts, make_tick, 11.0, **stand, base_pos_w=lambda t: (0.003 * t, 0.004 * t, 0.4)
    )
    assert value("drift", found) == pytest.approx(0.005, rel=1e-3)
    assert found["stand_s"] == pytest.approx(9.99, abs=0.02)
    assert "tracked_s" not in found
    assert value("cost_of_transport", found) is None


def test_a_stance_that_spreads_creeps(make_facts, make_tick):
    stand = dict(walks=False, asked=[0.0, 0.0, 0.0], base_pos_w=[0.0, 0.0, 0.4])

    def soles(t):
        angle = np.arange(6) * math.pi / 3.0
        return (1.0 + 0.002 * t) * np.stack([np.cos(angle), np.sin(angle), 0.0 * angle], axis=1)

    found = measured(make_facts, make_tick, 11.0, **stand, foot_soles_w=soles)
    assert value("creep", found) == pytest.approx(0.002, rel=1e-3)
    assert value("drift", found) == 0.0


def test_two_stands_do_not_add_the_way_between_them(make_facts, make_tick):
    figures = Figures(make_facts())
    for i in range(900):
        walks = 300 <= i < 600
        figures.tick(
            make_tick(0.01 * i, walks=walks, asked=[0.5 * walks, 0.0, 0.0],
                      base_pos_w=[0.01 * max(0, min(i, 600) - 300), 0.0, 0.4])
        )  # fmt: skip
    assert figures.figures()["drift"] == 0.0
    assert figures.figures()["stand_s"] == pytest.approx(4.0, abs=0.05)


def test_runs_shorter_than_the_debounce_are_passed_over():
    raw = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1], bool)
    starts, states = debounce(raw, 3)
    assert starts.tolist() == [0, 7, 14]
    assert states.tolist() == [True, False, True]


def test_a_signal_without_a_lasting_run_keeps_its_first_state():
    starts, states = debounce(np.array([1, 0, 1, 0], bool), 3)
    assert (starts.tolist(), states.tolist()) == ([0], [True])


def test_contacts_of_a_foot():
    # down 8, air 8, a blow of 2 samples, air 8, down 12 with the peak in its bouncing beginning
    force = np.concatenate(
        [np.full(8, 50.0), np.zeros(8), [300.0, 90.0], np.zeros(8), [400.0, 0.0], np.full(12, 60.0)]
    )
    found = contacts(force, 8)
    assert found.touchdowns.tolist() == [28]
    assert found.swings.tolist() == [[8, 28]]
    assert found.peaks.tolist() == [50.0, 300.0, 400.0]
    assert found.down.tolist() == [True] * 8 + [False] * 20 + [True] * 12


def test_touchdowns_per_foot_and_second(make_facts, make_tick):
    # every foot in the air for 0.2 of each 0.5 s: after 4 s, 8 swings of which the first touchdown
    # is at 0.2 s; 8 touchdowns of 6 feet in 24 foot-seconds
    def force(t):
        return np.full((4, 6), 20.0 if round(100.0 * t) % 50 >= 20 else 0.0)

    found = measured(make_facts, make_tick, 4.0, foot_force=force)
    assert found["touchdowns"] == 48.0
    assert value("touchdowns", found) == pytest.approx(2.0)
    assert value("three_feet", found) == pytest.approx(0.6)


def test_clearance_is_the_rise_over_the_higher_end():
    sole_z = np.array([0.0, 0.05, 0.12, 0.10, 0.08, 0.08])
    assert swing_heights(sole_z, np.array([[0, 4]])).tolist() == pytest.approx([0.04])


def test_clearance_of_a_trial(make_facts, make_tick):
    def force(t):
        return np.full((4, 6), 0.0 if 0.5 <= round(t, 2) < 0.7 else 20.0)

    def soles(t):
        return np.full((6, 3), 0.1 * max(0.0, 1.0 - abs(t - 0.6) / 0.1))

    found = measured(make_facts, make_tick, 1.5, foot_force=force, foot_soles_w=soles)
    assert found["swings"] == 6.0
    assert value("clearance", found) == pytest.approx(0.1)
    assert estimate(BY_NAME["foot_above_base"], [found]).largest == pytest.approx(-0.3)


def test_contact_peaks_are_in_body_weights(make_facts, make_tick):
    def force(t):
        force = np.zeros((4, 6))
        step = round(100.0 * t) % 50
        if step >= 20:
            force[:] = 0.5 * WEIGHT_N
        if step == 20:
            force[1, 0] = 2.0 * WEIGHT_N  # one physics step of one foot
        return force

    found = measured(make_facts, make_tick, 4.0, foot_force=force)
    assert found["peaks"] == 48.0
    assert (found["peaks.2.0"], found["peaks.0.5"]) == (8.0, 40.0)
    assert found["contact_peak"] == pytest.approx(2.0)
    assert value("contact_peak_p99", found) == pytest.approx(2.0)


def test_clamps_and_overload_per_joint_tick(make_facts, make_tick):
    torque = np.full((4, 18), 10.0)
    torque[0, 3] = -41.0  # 1 of 72
    found = measured(
        make_facts, make_tick, position_clamps=9, rate_clamps=lambda t: int(t < 2.0),
        joint_torque=torque,
    )  # fmt: skip
    assert value("position_clamps", found) == pytest.approx(0.5)
    assert value("rate_clamps", found) == pytest.approx(0.5 / 18)
    assert value("above_rated", found) == pytest.approx(1 / 72, rel=1e-4)


def test_the_worst_joint_is_named(make_facts, make_tick):
    torque = np.full((4, 18), 10.0)
    torque[:, 5] = (0.0, 0.0, 30.0, 40.0)  # RMS 25
    found = measured(make_facts, make_tick, joint_torque=torque)
    worst = estimate(BY_NAME["joint_rms"], [found, found])
    assert (worst.value, worst.n) == (pytest.approx(25.0), 2)
    assert worst.where == make_facts().joint_names[5]


def test_chunks_lose_no_tick(make_facts, make_tick):
    for ticks in (1, 63, 64, 65, 200):
        found = measured(make_facts, make_tick, 0.01 * ticks)
        assert found["joint_samples"] == ticks * 4 * 18
        assert found["energy"] == pytest.approx(1.8 * ticks)


def test_blind_time_and_old_pictures(make_facts, make_tick):
    found = measured(
        make_facts, make_tick, blind=lambda t: t < 1.0,
        feature_age_s=lambda t: math.nan if t < 2.0 else 0.12,
    )  # fmt: skip
    assert value("blind", found) == pytest.approx(0.25)
    assert value("feature_age", found) == pytest.approx(0.12)


def test_the_commanded_speed_needs_time_for_turns_on_the_spot(make_facts, course):
    from dataclasses import replace

    scenario = make_facts().scenario
    assert needed_s(scenario) == pytest.approx(40.0)
    # 10 m out and 10 m back: 180 - 60 degrees are turned on the spot at 0.5 rad/s
    there = replace(course, waypoints=np.array([[10.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    turn_s = math.radians(120.0) / 0.5
    assert needed_s(replace(scenario, course=there)) == pytest.approx(40.0 + turn_s)


def test_six_digits_are_kept(make_facts, make_tick):
    found = measured(make_facts, make_tick, base_lin_vel_b=[1.0 / 3.0, 0.0, 0.0])
    assert all(number == float(f"{number:.6g}") for number in found.values())
