"""The safety gate's rules, one at a time, with numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from krabby.robot.description import RobotDescription
from krabby.safety.gate import DriveMode, GateCfg, GateConfigError, SafetyGate
from krabby_proto import CommandStatus, Fault, SafetyState

MS = 1_000_000
START = 1_000 * MS
UPRIGHT = (0.0, 0.0, 0.0, 1.0)
LIMP = (SafetyState.DISARMED, SafetyState.DAMP, SafetyState.ESTOP)


def cfg(**changes) -> GateCfg:
    values = {
        "lower": [-1.0, -2.0],
        "upper": [1.0, 0.5],
        "max_rate": [10.0, 10.0],
        "kp": [250.0, 100.0],
        "kd": [10.0, 4.0],
        "damp_kd": [6.0, 6.0],
        "rated_torque": [40.0, 40.0],
        "peak_torque": [120.0, 120.0],
        "position_margin_rad": 0.1,
    }
    return GateCfg(**(values | changes))


class Robot:
    """A gate with a robot that stands still, and a clock."""

    def __init__(self, config: GateCfg | None = None) -> None:
        self.gate = SafetyGate(config or cfg())
        self.now = START
        self.pos = [0.2, -0.4]
        self.vel = [0.0, 0.0]
        self.effort = [0.0, 0.0]
        self.quat = UPRIGHT

    def observe(self, captured: int | None = None) -> None:
        arrays = map(np.array, (self.pos, self.vel, self.effort, self.quat))
        self.gate.observe(*arrays, self.now, captured)

    def cycle(self, ms: float = 5):
        self.now += round(ms * MS)
        self.observe()
        return self.gate.step(self.now)

    def command(self, *target, hold=False):
        return self.gate.command(np.array(target, dtype=np.float32), self.now, hold=hold)

    def request(self, op: str):
        return self.gate.request(op, self.now)

    def activate(self) -> "Robot":
        self.observe()
        assert self.request("arm").ok
        while self.gate.state is SafetyState.ARMING:
            self.cycle(10)
        assert self.gate.state is SafetyState.ACTIVE
        return self


@pytest.fixture
def robot() -> Robot:
    return Robot()


@pytest.fixture
def active() -> Robot:
    return Robot().activate()


# Arming


def test_a_new_gate_is_limp_and_waits(robot):
    drive = robot.gate.step(robot.now)
    assert robot.gate.state is SafetyState.DISARMED
    assert drive.mode is DriveMode.DAMP
    assert drive.kp.tolist() == [0.0, 0.0]
    assert drive.kd.tolist() == [6.0, 6.0]


def test_a_hold_keeps_the_target_and_counts_as_a_command(active):
    for _ in range(20):  # 100 ms, twice the time to HOLD
        drive = active.cycle(5)
        result = active.command(0.9, -1.9, hold=True)
        assert result.status is CommandStatus.APPLIED
        assert (result.position_clamp_mask, result.rate_clamp_mask) == (0, 0)
    assert active.gate.state is SafetyState.ACTIVE
    assert drive.joint_pos.tolist() == active.gate.target.tolist() == [0.2, -0.4]
    active.cycle(5)
    active.command(0.9, -0.4)
    # The rate of 10 rad/s counts from the newest hold, 5 ms ago.
    assert active.gate.target.tolist() == pytest.approx([0.25, -0.4])


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ((0.9,), CommandStatus.REJECTED_LENGTH),
        ((0.9, math.nan), CommandStatus.REJECTED_NONFINITE),
    ],
)
def test_a_hold_is_judged_like_any_command(active, target, status):
    assert active.command(*target, hold=True).status is status


def test_the_arm_count_rises_with_each_pose_that_is_armed_from(robot):
    def armed():
        return robot.gate.arm_count - 1

    robot.observe()
    assert armed() == 0
    robot.request("arm")
    robot.request("arm")  # refused, it is armed
    assert armed() == 1
    for _ in range(60):
        robot.cycle(10)
        robot.command(0.2, -0.4)
    assert (robot.gate.state, armed()) == (SafetyState.ACTIVE, 1)
    robot.request("disarm")
    robot.request("arm")
    assert armed() == 2
    robot.now += 30 * MS  # a late measurement: arming begins again, from it
    robot.pos = [0.1, -0.5]
    robot.observe()
    assert (robot.gate.state, armed()) == (SafetyState.ARMING, 3)
    assert robot.gate.target.tolist() == [0.1, -0.5]


@pytest.mark.parametrize(
    ("first", "second"), [(7, 8), (0, 2), (0xFFFF_FFFF, 1), (0x1_0000_0000, 2)]
)
def test_the_arm_count_has_32_bits_and_is_never_0(first, second):
    robot = Robot()
    robot.gate = SafetyGate(cfg(), arm_count=first)
    assert 1 <= robot.gate.arm_count <= 0xFFFF_FFFF
    robot.observe()
    robot.request("arm")
    assert robot.gate.arm_count == second


def test_arming_starts_at_the_measured_pose_and_raises_the_gains_from_zero(robot):
    robot.observe()
    assert robot.request("arm").ok
    first = robot.gate.step(robot.now)
    assert robot.gate.state is SafetyState.ARMING
    assert first.mode is DriveMode.POSITION
    assert first.joint_pos.tolist() == [0.2, -0.4]
    assert first.kp.tolist() == [0.0, 0.0]
    assert first.kd.tolist() == [6.0, 6.0]
    robot.pos = [0.25, -0.45]  # sags while the gains rise; the target stays
    for _ in range(25):
        half = robot.cycle(10)
    # 250 of 500 ms: half of kp; kd half way from the damping's 6 to 10 and to 4.
    assert half.kp.tolist() == [125.0, 50.0]
    assert half.kd.tolist() == [8.0, 5.0]
    assert half.joint_pos.tolist() == [0.2, -0.4]
    for _ in range(25):
        last = robot.cycle(10)
    assert robot.gate.state is SafetyState.ACTIVE
    assert last.kp.tolist() == [250.0, 100.0]
    assert last.kd.tolist() == [10.0, 4.0]
    assert last.joint_pos.tolist() == [0.2, -0.4]


def test_arming_beside_a_limit_starts_at_the_limit(robot):
    robot.pos = [1.1, -0.4]  # beyond the stop by 0.1; targets end at 1.0 - 0.1
    robot.observe()
    assert robot.request("arm").ok
    assert robot.gate.step(robot.now).joint_pos.tolist() == [0.9, -0.4]


def test_commands_are_not_followed_while_disarmed_or_arming(robot):
    assert robot.command(0.0, 0.0).status is CommandStatus.NOT_ARMED
    robot.observe()
    robot.request("arm")
    robot.cycle()
    assert robot.command(0.0, 0.0).status is CommandStatus.NOT_ARMED
    assert robot.gate.target.tolist() == [0.2, -0.4]


def test_arming_without_a_fresh_measurement_is_refused(robot):
    assert "no fresh measurement" in robot.request("arm").reason
    robot.observe()
    robot.now += 30 * MS
    assert not robot.request("arm").ok
    robot.observe()
    assert robot.request("arm").ok


@pytest.mark.parametrize(
    ("quat", "pos", "named"),
    [
        ((1.0, 0.0, 0.0, 0.0), [0.0, 0.0], "TILT"),
        (UPRIGHT, [1.16, 0.0], "JOINT_RANGE"),
        (UPRIGHT, [0.0, -2.16], "JOINT_RANGE"),
        (UPRIGHT, [math.nan, 0.0], "STATE_NONFINITE"),
        ((0.0, 0.0, 0.0, 0.0), [0.0, 0.0], "STATE_NONFINITE"),
        ((math.inf, 0.0, 0.0, 0.0), [0.0, 0.0], "STATE_NONFINITE"),
    ],
)
def test_arming_a_robot_in_a_bad_condition_is_refused_and_names_it(robot, quat, pos, named):
    robot.observe()
    robot.quat, robot.pos = quat, pos
    robot.observe()
    reply = robot.request("arm")
    assert not reply.ok
    assert named in reply.reason
    assert robot.gate.state is SafetyState.DISARMED


def test_arming_twice_is_refused_and_changes_nothing(active):
    reply = active.request("arm")
    assert not reply.ok
    assert "already armed (ACTIVE)" in reply.reason
    assert active.gate.state is SafetyState.ACTIVE


def test_arming_that_loses_its_measurements_damps(robot):
    robot.observe()
    robot.request("arm")
    robot.now += 99 * MS
    robot.gate.step(robot.now)
    assert robot.gate.state is SafetyState.ARMING
    robot.now += 1 * MS
    robot.gate.step(robot.now)
    assert robot.gate.state is SafetyState.DAMP
    assert robot.gate.faults == Fault.STATE_STALE


# Stalls: the process stands still for a while at any point, then continues

CALLS = {
    "observe": lambda robot: robot.observe(),
    "command": lambda robot: robot.command(0.2, -0.4),
    "step": lambda robot: robot.gate.step(robot.now),
    "request": lambda robot: robot.request("status"),
    "raise_fault": lambda robot: robot.gate.raise_fault(Fault.HAL, robot.now),
}


@pytest.fixture(params=CALLS)
def call(request):
    """The call with which a stall ends."""
    return request.param


@pytest.fixture(params=[SafetyState.ARMING, SafetyState.ACTIVE, SafetyState.HOLD])
def alive(request, robot):
    """A robot in each of the states in which the drives carry it."""
    if request.param is SafetyState.ARMING:
        robot.observe()
        robot.request("arm")
        robot.cycle(10)
    else:
        robot.activate()
    if request.param is SafetyState.HOLD:
        for _ in range(5):
            robot.cycle(10)
    assert robot.gate.state is request.param
    return robot


@pytest.mark.parametrize("ms", [100, 140, 5000])
def test_100_ms_without_a_measurement_damp_whatever_ends_them(alive, call, ms):
    alive.now += ms * MS
    CALLS[call](alive)
    assert alive.gate.state is SafetyState.DAMP
    # A measurement that ends the silence proves that they were missing; without one they still are.
    named = Fault.STATE_GAP if call == "observe" else Fault.STATE_STALE
    assert alive.gate.faults & ~Fault.HAL == named
    alive.cycle()
    assert alive.gate.step(alive.now).kp.tolist() == [0.0, 0.0]


def test_measurements_that_come_back_after_the_trip_add_no_second_fault(active):
    active.now += 100 * MS
    active.gate.step(active.now)
    active.cycle(100)
    assert active.gate.faults == Fault.STATE_STALE


def test_a_shorter_gap_holds_and_is_over_with_the_next_measurement(active):
    active.cycle(10)
    active.now += 30 * MS
    active.observe()
    assert active.gate.state is SafetyState.HOLD  # judged before the measurement counts
    active.gate.step(active.now)
    assert active.gate.state is SafetyState.ACTIVE
    active.command(0.2, -0.4)
    active.now += 99 * MS
    active.observe()
    assert active.gate.state is SafetyState.HOLD
    assert active.command(0.2, -0.4).status is CommandStatus.APPLIED
    assert active.gate.state is SafetyState.ACTIVE
    assert active.gate.faults == Fault(0)


def test_what_the_measurement_after_a_gap_shows_is_named_beside_it(active):
    active.now += 140 * MS
    active.quat = (1.0, 0.0, 0.0, 0.0)
    active.observe()
    assert active.gate.faults == Fault.STATE_GAP | Fault.TILT


def test_values_that_are_no_numbers_are_no_measurement(robot):
    robot.observe()
    robot.now += 30 * MS
    robot.pos = [math.nan, 0.0]
    robot.observe()
    assert robot.request("arm").reason.startswith("no fresh measurement")


def test_a_gap_that_ends_in_no_number_has_not_ended(active):
    active.now += 140 * MS
    active.pos = [math.nan, 0.0]
    active.observe()
    assert active.gate.faults == Fault.STATE_STALE | Fault.STATE_NONFINITE


@pytest.fixture
def rising(robot):
    """ARMING for 200 of 500 ms."""
    robot.observe()
    robot.request("arm")
    for _ in range(20):
        drive = robot.cycle(10)
    assert drive.kp.tolist() == [100.0, 40.0]
    return robot


def test_30_ms_without_a_measurement_start_the_arming_again_from_where_the_robot_is(rising):
    rising.pos = [0.1, -0.9]  # it sagged meanwhile
    drive = rising.cycle(30)
    assert rising.gate.state is SafetyState.ARMING
    assert drive.kp.tolist() == [0.0, 0.0]
    assert drive.kd.tolist() == [6.0, 6.0]
    assert drive.joint_pos.tolist() == [0.1, -0.9]
    assert rising.cycle(10).kp.tolist() == [5.0, 2.0]
    assert rising.gate.faults == Fault(0)


@pytest.mark.parametrize("call", ["command", "step", "request"])
def test_arming_has_no_stiffness_while_measurements_are_late(rising, call):
    rising.now += 30 * MS
    CALLS[call](rising)
    assert rising.gate.step(rising.now).kp.tolist() == [0.0, 0.0]
    rising.now += 40 * MS
    assert rising.gate.step(rising.now).kp.tolist() == [0.0, 0.0]
    rising.pos = [0.1, -0.9]
    drive = rising.cycle(10)
    assert drive.kp.tolist() == [0.0, 0.0]
    assert drive.joint_pos.tolist() == [0.1, -0.9]


def test_29_ms_without_a_measurement_are_no_gap(rising):
    rising.pos = [0.1, -0.9]
    drive = rising.cycle(29)
    assert drive.joint_pos.tolist() == [0.2, -0.4]
    assert drive.kp.tolist() == [110.0, 44.0]  # credited with 20 ms


def test_arming_that_started_again_takes_as_long_as_the_first_time(robot):
    robot.observe()
    robot.request("arm")
    for _ in range(49):
        robot.cycle(10)
    robot.cycle(30)
    for _ in range(49):
        robot.cycle(10)
    assert robot.gate.state is SafetyState.ARMING
    assert robot.cycle(10).kp.tolist() == [250.0, 100.0]
    assert robot.gate.state is SafetyState.ACTIVE


def test_gains_rise_by_the_credit_of_one_step_at_most(robot):
    robot.observe()
    robot.request("arm")
    assert robot.cycle(8).kp.tolist() == [4.0, 1.6]
    for _ in range(100):  # measured all the while, but `step` is not called
        robot.now += 10 * MS
        robot.observe()
        assert robot.command(0.9, 0.4).status is CommandStatus.NOT_ARMED
    assert robot.gate.state is SafetyState.ARMING
    # 20 of 500 ms are credited: 250 / 25 and 100 / 25 more.
    assert robot.gate.step(robot.now).kp == pytest.approx([14.0, 5.6])
    assert robot.gate.step(robot.now).kp == pytest.approx([14.0, 5.6])


def test_a_command_after_150_ms_of_silence_finds_the_deadman_done(call):
    robot = Robot(cfg(state_stop_s=1.0)).activate()  # the measurements may stay away for longer
    robot.now += 150 * MS
    CALLS[call](robot)
    assert robot.gate.faults & ~Fault.HAL == Fault.COMMAND_TIMEOUT
    assert robot.command(0.2, -0.4).reason == "DAMP: arm again"


def test_a_measurement_is_as_old_as_its_capture(active):
    active.now += 40 * MS
    active.observe(captured=active.now - 31 * MS)
    assert active.command(0.3, -0.4).status is CommandStatus.HELD
    active.observe(captured=active.now - 29 * MS)
    assert active.command(0.3, -0.4).status is CommandStatus.APPLIED
    active.now += 70 * MS
    active.observe(captured=active.now - 99 * MS)  # the same once more: 99 ms old by now
    active.now += 1 * MS
    active.gate.step(active.now)
    assert active.gate.faults == Fault.STATE_STALE


def test_a_measurement_from_before_the_newest_makes_it_no_older(active):
    active.cycle(10)
    active.observe(captured=active.now - 90 * MS)
    active.now += 29 * MS
    assert active.command(0.3, -0.4).status is CommandStatus.APPLIED


def test_a_measurement_from_the_future_was_captured_now(active):
    active.observe(captured=active.now + 3_600_000 * MS)
    active.now += 30 * MS
    assert active.command(0.3, -0.4).status is CommandStatus.HELD


# Targets


def test_a_command_within_limits_is_applied_as_it_is(active):
    active.cycle(10)
    result = active.command(0.25, -0.45)
    assert result == (CommandStatus.APPLIED, 0, 0, "")
    assert active.gate.step(active.now).joint_pos == pytest.approx([0.25, -0.45])


def test_a_command_is_cut_to_the_rate_limit(active):
    active.cycle(10)
    # 10 rad/s for 10 ms is 0.1 rad: joint 0 may go from 0.2 to 0.3, joint 1 from -0.4 to -0.5.
    result = active.command(0.9, -0.45)
    assert (result.position_clamp_mask, result.rate_clamp_mask) == (0b00, 0b01)
    assert active.gate.target == pytest.approx([0.3, -0.45])
    active.cycle(10)
    assert active.command(0.3, -2.5).rate_clamp_mask == 0b10
    assert active.gate.target == pytest.approx([0.3, -0.55])


def test_a_command_is_cut_to_the_position_limits_less_their_margin(active):
    for _ in range(20):
        active.cycle(10)
        result = active.command(5.0, -5.0)
    assert result == (CommandStatus.APPLIED, 0b11, 0b00, "")
    assert active.gate.target.tolist() == [0.9, -1.9]


def test_a_limit_that_went_through_float32_is_not_reported_as_a_violation(active):
    for _ in range(20):
        active.cycle(10)
        result = active.command(np.float32(0.9), np.float32(-1.9))
    assert float(np.float32(-1.9)) != -1.9
    assert result.position_clamp_mask == 0


def test_a_late_command_is_credited_with_no_more_than_two_periods(active):
    active.cycle(10)
    active.command(0.2, -0.4)
    active.cycle(20)
    active.cycle(20)
    active.command(0.9, -0.4)
    assert active.gate.target[0] == pytest.approx(0.2 + 10.0 * 0.02)


def test_two_commands_at_one_time_move_no_further_than_one(active):
    active.cycle(10)
    active.command(0.9, -0.4)
    result = active.command(0.9, -0.4)
    assert result.rate_clamp_mask == 0b01
    assert active.gate.target[0] == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_target_that_is_no_number_is_refused_and_feeds_no_deadman(active, bad):
    active.cycle(40)
    assert active.command(bad, 0.0) == (CommandStatus.REJECTED_NONFINITE, 0, 0, "non-finite angles")
    active.cycle(10)
    assert active.gate.state is SafetyState.HOLD
    assert active.gate.target.tolist() == [0.2, -0.4]


def test_a_command_of_another_length_is_refused(active):
    result = active.command(0.1, 0.2, 0.3)
    assert result.status is CommandStatus.REJECTED_LENGTH
    assert result.reason == "(3,) angles for 2"


# Deadman


def test_late_commands_hold_at_50_ms_and_damp_at_150_ms(active):
    active.cycle(10)
    active.command(0.25, -0.4)
    active.cycle(25)
    assert active.cycle(24).kp.tolist() == [250.0, 100.0]
    assert active.gate.state is SafetyState.ACTIVE  # 49 ms
    held = active.cycle(1)
    assert active.gate.state is SafetyState.HOLD  # 50 ms
    assert held.kp.tolist() == [250.0, 100.0]
    assert held.joint_pos == pytest.approx([0.25, -0.4])
    for _ in range(4):
        active.cycle(20)
    active.cycle(19)
    assert active.gate.state is SafetyState.HOLD  # 149 ms
    damped = active.cycle(1)
    assert active.gate.state is SafetyState.DAMP  # 150 ms
    assert active.gate.faults == Fault.COMMAND_TIMEOUT
    assert damped.kp.tolist() == [0.0, 0.0]
    assert damped.kd.tolist() == [6.0, 6.0]


def test_the_next_command_ends_a_hold(active):
    active.cycle(10)
    active.command(0.25, -0.4)
    for _ in range(6):
        active.cycle(10)
    assert active.gate.state is SafetyState.HOLD
    assert active.command(0.25, -0.3).status is CommandStatus.APPLIED
    assert active.gate.state is SafetyState.ACTIVE
    assert active.gate.faults == Fault(0)


def test_a_command_after_the_deadman_does_not_revive_the_drives(active):
    active.cycle(10)
    active.command(0.25, -0.4)
    active.now += 90 * MS
    active.observe()
    active.now += 60 * MS
    result = active.command(0.25, -0.4)  # step was not called meanwhile
    assert (result.status, result.reason) == (CommandStatus.REJECTED_SAFETY, "DAMP: arm again")
    assert active.gate.faults == Fault.COMMAND_TIMEOUT


def test_the_deadman_starts_when_the_robot_becomes_active(active):
    active.cycle(49)
    assert active.gate.state is SafetyState.ACTIVE
    active.cycle(1)
    assert active.gate.state is SafetyState.HOLD


def test_stale_measurements_hold_at_30_ms_and_damp_at_100_ms(active):
    active.cycle(10)

    def command_for(ms: int):
        for _ in range(ms):
            active.now += 1 * MS
            result = active.command(0.2, -0.4)
        return result.status

    assert command_for(29) == CommandStatus.APPLIED
    assert command_for(1) == CommandStatus.HELD
    assert active.gate.state is SafetyState.HOLD
    assert command_for(69) == CommandStatus.HELD
    assert command_for(1) == CommandStatus.REJECTED_SAFETY
    assert active.gate.state is SafetyState.DAMP
    assert active.gate.faults == Fault.STATE_STALE


def test_a_held_command_moves_nothing_but_proves_the_sender_alive(active):
    active.cycle(10)
    active.command(0.2, -0.4)
    for _ in range(6):
        active.now += 10 * MS
        active.command(0.3, -0.4)
    # The three commands up to 20 ms came through: 2 x 0.1 rad/cycle is cut by the target itself.
    assert active.gate.target.tolist() == pytest.approx([0.3, -0.4])
    active.observe()
    active.gate.step(active.now)
    assert active.gate.state is SafetyState.ACTIVE  # at once, without a new command


# Faults


def test_tilting_past_the_limit_damps(active):
    def roll(angle):
        return (math.sin(angle / 2), 0.0, 0.0, math.cos(angle / 2))

    active.quat = roll(0.999)
    active.cycle()
    assert active.gate.state is SafetyState.ACTIVE
    active.quat = roll(-1.001)
    assert active.cycle().mode is DriveMode.DAMP
    assert active.gate.faults == Fault.TILT


def test_a_tilt_about_the_vertical_is_none(active):
    active.quat = (0.0, 0.0, 1.0, 0.0)
    active.cycle()
    assert active.gate.state is SafetyState.ACTIVE


def test_a_quaternion_off_by_rounding_is_measured_by_its_direction(active):
    scale = 1.05
    active.quat = (math.sin(0.5005) * scale, 0.0, 0.0, math.cos(0.5005) * scale)
    active.cycle()
    assert active.gate.faults == Fault.TILT


@pytest.mark.parametrize("field", ["pos", "vel", "effort"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_that_is_no_number_damps(active, field, bad):
    setattr(active, field, [0.0, bad])
    drive = active.cycle()
    assert active.gate.state is SafetyState.DAMP
    assert active.gate.faults == Fault.STATE_NONFINITE
    assert drive.joint_pos.tolist() == [0.2, -0.4]  # the last good measurement
    assert np.isfinite(drive.effort_limit).all()


def test_a_joint_measured_beyond_its_stop_damps(active):
    active.pos = [0.2, -2.149]
    active.cycle()
    assert active.gate.state is SafetyState.ACTIVE
    active.pos = [0.2, -2.151]
    active.cycle()
    assert active.gate.faults == Fault.JOINT_RANGE


def test_a_fault_of_the_hal_damps_and_is_kept_until_the_next_arm(active):
    active.gate.raise_fault(Fault.DRIVE | Fault.BUS, active.now)
    assert active.gate.state is SafetyState.DAMP
    assert active.gate.faults == Fault.DRIVE | Fault.BUS
    active.cycle()
    assert active.request("arm").ok
    assert active.gate.state is SafetyState.ARMING
    assert active.gate.faults == Fault(0)


def test_a_hardware_stop_reported_by_the_hal_latches(robot):
    robot.gate.raise_fault(Fault.ESTOP | Fault.HAL, robot.now)
    assert robot.gate.state is SafetyState.ESTOP
    assert robot.gate.faults == Fault.ESTOP | Fault.HAL


# Operator


def test_an_emergency_stop_is_left_by_reset_alone(active):
    assert active.request("estop").ok
    drive = active.cycle()
    assert drive.kp.tolist() == [0.0, 0.0]
    assert active.command(0.2, -0.4).reason == "ESTOP: reset, then arm"
    assert not active.request("arm").ok
    assert not active.request("disarm").ok
    active.gate.raise_fault(Fault.HAL, active.now)
    assert active.gate.state is SafetyState.ESTOP
    assert active.request("reset").ok
    assert active.gate.state is SafetyState.DISARMED
    assert active.gate.faults == Fault(0)
    assert active.request("arm").ok


def test_disarming_goes_limp_at_once(active):
    assert active.request("disarm").ok
    assert active.gate.step(active.now).mode is DriveMode.DAMP
    assert active.gate.state is SafetyState.DISARMED


def test_resetting_an_armed_robot_is_refused(active):
    assert not active.request("reset").ok
    assert active.gate.state is SafetyState.ACTIVE


def test_status_says_the_state_and_changes_nothing(active):
    assert active.request("status") == (True, "ACTIVE")


def test_an_unknown_request_names_the_known_ones(active):
    reply = active.request("launch")
    assert not reply.ok
    assert "'launch'" in reply.reason
    assert "arm, disarm, estop, reset or status" in reply.reason


def test_an_operator_who_comes_late_finds_the_deadman_done(active):
    active.now += 10_000 * MS
    assert active.request("status") == (True, "DAMP")


# Effort budget


def test_the_filter_follows_the_mean_square_effort(robot):
    robot.effort = [40.0, -80.0]
    robot.observe()
    start = robot.gate.effort.rms**2
    for _ in range(3000):
        robot.cycle(10)
    # After one time constant, 30 s, the mean square has covered 1 - 1/e of its way.
    share = 1 - math.exp(-1)
    target = np.array([40.0, 80.0]) ** 2
    assert robot.gate.effort.rms**2 == pytest.approx(start + (target - start) * share)


def test_the_limit_is_peak_until_the_fold_and_rated_at_the_rated_mean_square():
    mean_squares = {0.0: 120.0, 0.8: 120.0, 0.9: 80.0, 0.95: 60.0, 1.0: 40.0, 1.05: 40.0}
    for mean_square, limit in mean_squares.items():
        fresh = Robot(cfg(rms_window_s=1e-3, drive_timeout_s=1e-5))
        fresh.effort = [40.0 * math.sqrt(mean_square), 0.0]
        for _ in range(2000):  # 10 µs each count, 20 time constants in all
            drive = fresh.cycle(1)
        assert drive.effort_limit == pytest.approx([limit, 120.0])


def test_a_drive_that_obeys_its_limit_never_passes_its_rating(robot):
    drive = robot.gate.step(robot.now)
    for _ in range(20_000):
        robot.effort = drive.effort_limit
        drive = robot.cycle(10)
        assert robot.gate.effort.ratio <= 1.0
    assert robot.gate.effort.ratio > 0.999
    assert drive.effort_limit == pytest.approx([40.0, 40.0], rel=0.02)


def test_a_drive_that_ignores_its_limit_is_damped_before_long(active):
    active.effort = [0.0, 120.0]
    ms = 0
    while active.gate.state is SafetyState.ACTIVE:
        active.cycle(10)
        active.command(0.2, -0.4)
        ms += 10
    assert active.gate.faults == Fault.EFFORT_BUDGET
    # 9 (1 - exp(-t / 30 s)) = 1.05²: t = 3.92 s
    assert ms == pytest.approx(-30_000 * math.log(1 - 1.05**2 / 9), abs=20)
    assert not active.request("arm").ok


def test_a_gap_in_the_measurements_heats_for_the_drive_timeout_and_cools_no_longer(robot):
    robot.effort = [120.0, 0.0]
    robot.observe()
    before = robot.gate.effort.rms[0] ** 2
    robot.cycle(3_600_000)
    share = 1 - math.exp(-0.1 / 30)
    after = before + (120.0**2 - before) * share
    assert robot.gate.effort.rms[0] ** 2 == pytest.approx(after)
    robot.effort = [0.0, 0.0]
    robot.cycle(3_600_000)
    assert robot.gate.effort.rms[0] ** 2 == pytest.approx(after * (1 - share))


def test_an_absurd_effort_reading_is_cut_and_trips_without_overflow(active):
    active.effort = [1e200, 0.0]
    for _ in range(20):
        active.cycle(10)
    assert Fault.EFFORT_BUDGET in active.gate.faults
    assert np.isfinite(active.gate.effort.rms).all()


# Time


def test_standing_time_moves_no_target(active):
    for _ in range(100):
        active.observe()
        active.command(0.9, 0.4)
        active.gate.step(active.now)
    assert active.gate.target.tolist() == [0.2, -0.4]


def test_times_read_in_the_wrong_order_within_a_cycle_are_tolerated(active):
    active.cycle(10)
    active.now -= 1 * MS
    assert active.command(0.25, -0.4).status is CommandStatus.APPLIED
    assert active.gate.state is SafetyState.ACTIVE


def test_a_clock_that_steps_back_damps_and_the_robot_can_be_armed_on_the_new_time(active):
    active.now -= 3_600_000 * MS
    assert active.command(0.25, -0.4).status is CommandStatus.REJECTED_SAFETY
    assert active.gate.faults == Fault.CLOCK
    assert not active.request("arm").ok  # what was measured belongs to the old time
    active.activate()
    for _ in range(15):
        active.cycle(10)
    assert active.gate.faults == Fault.COMMAND_TIMEOUT  # the deadman works on the new time


def test_a_clock_that_steps_back_under_a_limp_robot_is_no_fault(robot):
    robot.observe()
    robot.now -= 500 * MS
    robot.cycle()
    assert robot.gate.faults == Fault(0)


def test_a_clock_that_jumps_ahead_damps(active):
    active.cycle(86_400_000)
    assert active.gate.state is SafetyState.DAMP


# Results


def test_a_drive_command_is_not_changed_by_later_ones(active):
    active.cycle(10)
    active.command(0.25, -0.4)
    before = active.gate.step(active.now)
    kept = [array.copy() for array in before[1:]]
    active.effort = [90.0, 90.0]
    active.cycle(10)
    active.command(0.2, -0.3)
    active.gate.step(active.now)
    for array, copy in zip(before[1:], kept, strict=True):
        assert array.tolist() == copy.tolist()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_eighteen_joints_fill_the_masks_bit_by_bit():
    description = RobotDescription.load()
    config = GateCfg.from_description(description)
    assert config.joint_count == 18
    assert config.damp_kd.tolist() == [description.safety.damp_kd] * 18
    assert config.tilt_limit_rad == description.safety.tilt_limit_rad
    gate = SafetyGate(config)
    quat, zero = np.array(UPRIGHT), np.zeros(18)
    for now in range(0, 520 * MS, 10 * MS):
        gate.observe(description.default_joint_pos, zero, zero, quat, now)
        gate.step(now)
        if now == 0:
            gate.request("arm", now)
    target = description.default_joint_pos.copy()
    target[17] = -3.0
    result = gate.command(target, now)
    assert result.status is CommandStatus.APPLIED
    assert result.position_clamp_mask == 1 << 17


def test_thresholds_of_the_description_can_be_overridden():
    config = GateCfg.from_description(RobotDescription.load(), tilt_limit_rad=0.5)
    assert config.tilt_limit_rad == 0.5


# Configuration


def test_limits_are_copied_and_frozen():
    lower = np.array([-1.0, -2.0])
    config = cfg(lower=lower)
    lower[0] = -9.0
    assert config.lower[0] == -1.0
    with pytest.raises(ValueError, match="read-only"):
        config.lower[0] = -9.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kp": [1.0, 2.0, 3.0]}, "'kp': \\(3,\\)"),
        (dict.fromkeys(("lower", "upper", "max_rate", "kp", "kd", "damp_kd", "rated_torque",
                        "peak_torque"), 1.0), "one value per joint"),
        ({"kd": [1.0, math.nan]}, "kd = .* not finite"),
        ({"max_rate": [1.0, 0.0]}, "max_rate = .* must be positive"),
        ({"rated_torque": [-1.0, 40.0]}, "rated_torque = .* must be positive"),
        ({"damp_kd": [6.0, -6.0]}, "damp_kd = .* must not be negative"),
        ({"range_margin_rad": -0.1}, "range_margin_rad = -0.1"),
        ({"position_margin_rad": math.nan}, "position_margin_rad = nan"),
        ({"lower": [1.0, -2.0]}, "leave no room"),
        ({"position_margin_rad": 1.0}, "leave no room"),
        ({"rated_torque": [40.0, 121.0]}, "exceeds peak_torque"),
        ({"arming_s": 0.0}, "arming_s = 0.0"),
        ({"state_stop_s": math.inf}, "state_stop_s = inf"),
        ({"hold_after_s": 0.2}, "hold_after_s = 0.2 exceeds damp_after_s = 0.15"),
        ({"state_stale_s": 0.2}, "state_stale_s = 0.2 exceeds state_stop_s = 0.1"),
        ({"fold_start": 1.0}, "fold_start = 1.0"),
        # 1 - exp(-0.1/3) = 0.0328, times 9 - 0.8, is 0.269: more than the 0.2 left to the rating.
        ({"rms_window_s": 3.0}, "overshoot the effort budget"),
    ],
)  # fmt: skip
def test_limits_that_contradict_each_other_are_refused(changes, named):
    with pytest.raises(GateConfigError, match=named):
        cfg(**changes)


def test_a_tilt_limit_beyond_half_a_turn_never_trips():
    robot = Robot(replace(cfg(), tilt_limit_rad=4.0)).activate()
    robot.quat = (1.0, 0.0, 0.0, 0.0)
    robot.cycle()
    assert robot.gate.state is SafetyState.ACTIVE
