import math

import numpy as np
import pytest
from krabby.drivers.imu import ImuCheck, ImuFault, ImuSample
from krabby.robot import rotations

PERIOD_NS = 5_000_000


class Robot:
    """Shows 200 Hz samples of a level robot that trembles a little to a check."""

    def __init__(self):
        self.check = ImuCheck(200.0)
        self.now_ns = 10**12
        self.rng = np.random.default_rng(0)

    def sample(self, **changes):
        noise = self.rng.normal(scale=1e-3, size=(2, 3))
        sample = ImuSample(
            rotations.IDENTITY.copy(), noise[0], noise[1] + (0, 0, 9.81), self.now_ns, 30.0
        )
        return sample._replace(**changes)

    def run(self, seconds=1.0, **changes):
        """All faults of that time."""
        seen = set()
        for _ in range(round(seconds * 200)):
            self.now_ns += PERIOD_NS
            seen.update(self.check.observe(self.sample(**changes), self.now_ns))
        return seen


@pytest.fixture
def robot():
    robot = Robot()
    assert robot.run() == set()
    return robot


def test_silence_is_noticed_after_50_ms_and_its_end_at_once(robot):
    last = robot.sample()
    assert robot.check.observe(last, robot.now_ns + 50_000_000) == ()
    assert robot.check.observe(last, robot.now_ns + 50_000_001) == (ImuFault.SILENT,)
    robot.now_ns += 60_000_000
    assert robot.check.observe(robot.sample(), robot.now_ns) == ()
    assert robot.check.counts[ImuFault.SILENT] == 1


def test_a_sensor_that_never_spoke_is_silent():
    check = ImuCheck(200.0)
    assert check.observe(None, 0) == ()
    assert check.observe(None, 51_000_000) == (ImuFault.SILENT,)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"quat_wb": np.array([0, 0, 0, 0.97])}, ImuFault.NORM),
        ({"quat_wb": np.array([0, 0, 0, math.nan])}, ImuFault.NORM),
        ({"lin_acc_b": np.array([0, math.inf, 0])}, ImuFault.NORM),
        ({"ang_vel_b": np.array([0, 0, 35.0])}, ImuFault.RANGE),
        ({"lin_acc_b": np.array([160.0, 0, 0])}, ImuFault.RANGE),
        # 20 deg within 5 ms, while the gyroscopes feel nothing
        ({"quat_wb": rotations.from_euler(math.radians(20), 0, 0)}, ImuFault.JUMP),
    ],
)
def test_a_value_that_cannot_be_is_named(robot, changes, fault):
    robot.now_ns += PERIOD_NS
    assert fault in robot.check.observe(robot.sample(**changes), robot.now_ns)
    assert robot.check.counts[fault] == 1


def test_a_fast_turn_that_the_gyroscopes_feel_is_no_jump(robot):
    # 30 rad/s for 5 ms are 8.6 deg; 0.15 rad beyond that are allowed: 17 deg pass, 18 do not
    fast = np.array([30.0, 0.0, 0.0])
    for degrees, faults in ((17, ()), (18, (ImuFault.JUMP,))):
        turned = rotations.from_euler(math.radians(degrees), 0, 0)
        robot.now_ns += PERIOD_NS
        sample = robot.sample(quat_wb=turned, ang_vel_b=fast)
        assert robot.check.observe(sample, robot.now_ns) == faults
        robot.now_ns += PERIOD_NS
        robot.check.observe(robot.sample(), robot.now_ns)


def test_the_same_orientation_with_the_other_sign_is_no_jump(robot):
    assert robot.run(0.1, quat_wb=-rotations.IDENTITY) == set()


def test_fresh_stamps_on_frozen_values_are_noticed(robot):
    frozen = robot.sample()
    values = {"ang_vel_b": frozen.ang_vel_b, "lin_acc_b": frozen.lin_acc_b}
    assert robot.run(0.24, **values) == set()
    assert robot.run(0.03, **values) == {ImuFault.STUCK}
    assert robot.run(0.1) == set()


def test_a_sensor_at_a_quarter_of_its_rate_is_too_slow(robot):
    seen = set()
    for _ in range(50):
        robot.now_ns += 4 * PERIOD_NS
        seen.update(robot.check.observe(robot.sample(), robot.now_ns))
    assert seen == {ImuFault.RATE}


def strides(robot, seconds):
    """Walk with two strides a second that feel 3.8 to 15.8 m/s^2 upwards; all faults."""
    seen = set()
    for _ in range(round(seconds * 200)):
        robot.now_ns += PERIOD_NS
        bounce = 6.0 * math.sin(2.0 * math.pi * 2.0 * robot.now_ns * 1e-9)
        sample = robot.sample(lin_acc_b=np.array([0.0, 0.0, 9.81 + bounce]))
        seen.update(robot.check.observe(sample, robot.now_ns))
    return seen


def test_a_gap_of_a_busy_host_does_not_make_a_stride_look_like_another_gravity(robot):
    """The half stride after it has 9.81 + 6 · 2 / pi = 13.6 m/s^2 on average, 1.39 of gravity."""
    assert strides(robot, 3.94) == set()
    robot.now_ns += 60_000_000
    assert robot.now_ns % 500_000_000 == 0
    assert strides(robot, 1.0) == set()


def test_an_accelerometer_that_flips_in_a_gap_is_found_all_the_same(robot):
    robot.now_ns += 60_000_000
    assert robot.run(0.4, lin_acc_b=np.array([0.0, 0.01, -9.81])) >= {ImuFault.GRAVITY}


def test_after_half_a_second_it_may_be_another_sensor_that_is_judged_anew(robot):
    wrong = np.array([0.0, 0.01, -9.81])
    assert ImuFault.GRAVITY in robot.run(1.0, lin_acc_b=wrong)
    robot.now_ns += 600_000_000
    assert ImuFault.GRAVITY not in robot.run(0.3)


def test_an_accelerometer_that_was_mended_is_believed_after_a_recovery(robot):
    """The average of 2 s alone would need 4.6 s to forget it."""
    assert ImuFault.GRAVITY in robot.run(4.0, lin_acc_b=np.array([0.0, 0.01, -9.81]))
    assert ImuFault.GRAVITY in robot.run(0.3)
    robot.check.average_anew()
    assert ImuFault.GRAVITY not in robot.run(0.3)
