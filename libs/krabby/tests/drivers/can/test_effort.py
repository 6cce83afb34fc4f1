"""No command asks a drive for more torque than its limit at the newest reading."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from krabby.drivers.can.effort import commanded_torque, fold
from krabby.drivers.can.types import DriveTargets


def one(*values):
    return DriveTargets(*(np.array([float(value)]) for value in values))


def folded(targets, pos, vel, limit):
    return fold(targets, np.array([pos]), np.array([vel]), np.array([limit]))


def test_within_the_limit_nothing_changes():
    targets = one(0.1, 0.0, 250.0, 10.0, 0.0)
    assert folded(targets, 0.0, 0.0, 25.0) is targets


def test_stiffness_gives_way_and_damping_stays():
    # 250 * 0.4 - 10 * 2 = 80 of 30 allowed: the spring may give 30 + 20 = 50, half of its 100.
    got = folded(one(0.4, 0.0, 250.0, 10.0, 0.0), 0.0, 2.0, 30.0)
    assert (got.kp[0], got.kd[0], got.joint_pos[0]) == (125.0, 10.0, 0.4)


def test_damping_alone_beyond_the_limit_is_cut_too():
    # 10 * 12 = 120 of 30: a quarter.
    got = folded(one(0.0, 0.0, 0.0, 10.0, 0.0), 0.0, 12.0, 30.0)
    assert got.kd[0] == 2.5


def test_a_joint_that_was_never_read_gets_no_stiffness():
    got = folded(one(0.4, 0.0, 250.0, 10.0, 5.0), np.nan, np.nan, 30.0)
    assert (got.kp[0], got.torque[0], got.kd[0]) == (0.0, 0.0, 10.0)


values = st.floats(-20.0, 20.0)
gains = st.floats(0.0, 1000.0)


@given(
    values, values, gains, gains, st.floats(-200.0, 200.0), values, values, st.floats(0.0, 150.0)
)
def test_the_limit_holds_and_no_gain_grows_or_turns(pos, vel, kp, kd, torque, q, qd, limit):
    before = one(pos, vel, kp, kd, torque)
    after = folded(before, q, qd, limit)
    asked = commanded_torque(after, np.array([q]), np.array([qd]))
    assert abs(asked[0]) <= limit + 1e-9 * (1.0 + abs(kp) * 40.0 + abs(kd) * 40.0 + 200.0)
    assert 0.0 <= after.kp[0] <= kp
    assert 0.0 <= after.kd[0] <= kd
    assert after.joint_pos[0] == pos
