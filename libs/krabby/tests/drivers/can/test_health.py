"""When an encoder counts as stuck and a torque as wrong: hand-worked, a reading every 5 ms."""

import numpy as np
import pytest
from krabby.drivers.can.calibration import Calibration, Mounting
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.health import DriveHealth, HealthCfg
from krabby.drivers.can.types import DriveFault, DriveMode, DriveReadings
from krabby.robot.description import RobotDescription

DESC = RobotDescription.load()
HARDWARE = HardwareDescription.load(None, DESC)
MOUNTING = Mounting(HARDWARE, Calibration.nominal(HARDWARE))
MS = 1_000_000
JOINT = 7
ON = np.ones(18, np.bool_)
CFG = HealthCfg(stuck_after_s=0.09, stuck_torque_share=0.3, stuck_carrying_share=1.0)
"""Rated are 40 N·m: 12 in the air, 40 under load."""


class Rig:
    """Joints that move with every reading, until one is told to stand still."""

    def __init__(self):
        self.health = DriveHealth(HARDWARE, MOUNTING, DESC, CFG)
        self.readings = DriveReadings(18)
        self.readings.joint_pos[:] = self.readings.joint_vel[:] = 0.0
        self.readings.mode[:] = DriveMode.RUN
        self.readings.voltage_v[:] = 48.0
        self.readings.temperature_c[:] = 25.0
        self.now_ns = 1_000 * MS
        self.holding = ON.copy()
        for _ in range(3):
            self.read(0.0, moves=True)

    def read(self, torque, *, moves=False):
        """One reading 5 ms later; whether the joint's encoder counts as stuck."""
        self.now_ns += 5 * MS
        readings = self.readings
        readings.joint_pos[np.arange(18) != JOINT] += 0.001
        readings.joint_pos[JOINT] += 0.001 * moves
        readings.stamp_ns[:] = self.now_ns
        readings.faults[:] = 0
        told = np.zeros(18)
        told[JOINT] = torque
        self.health.update(readings, told, ON, self.holding, readings.joint_pos, self.now_ns)
        others = np.delete(readings.faults, JOINT)
        assert not others.any()
        return bool(readings.faults[JOINT] & DriveFault.STUCK_ENCODER)

    def stuck_after_ms(self, torque_at, limit_ms=400):
        """After how long at rest it is found, `torque_at` of the ms since; None for not at all."""
        for ms in range(5, limit_ms + 1, 5):
            if self.read(torque_at(ms)):
                return ms
        return None


@pytest.fixture
def rig():
    return Rig()


def test_a_leg_in_the_air_that_is_pushed_and_does_not_move_is_found(rig):
    # 0.2 N·m/ms: more than 12 N·m more than at 5 ms from 70 ms on, and 90 ms are over at 95.
    assert rig.stuck_after_ms(lambda ms: 0.2 * ms) == 95


def test_one_that_is_pushed_slowly_is_found_when_it_should_have_moved(rig):
    # 0.1 N·m/ms: more than 12 N·m more than at 5 ms from 125 ms on, at 130.
    assert rig.stuck_after_ms(lambda ms: 0.1 * ms) == 130


def test_a_leg_that_takes_over_load_may_stand_still(rig):
    """Measured while it stood up: -14.7 to -29.0 N·m in 95 ms, still to the last bit."""
    rig.health.carrying[6:9] = True
    assert rig.stuck_after_ms(lambda ms: -14.7 - 0.1505 * min(ms, 95)) is None


def test_not_even_the_ground_holds_against_the_rated_torque(rig):
    rig.health.carrying[6:9] = True
    # 0.4 N·m/ms: more than 40 N·m more than at 5 ms from 105 ms on, at 110.
    assert rig.stuck_after_ms(lambda ms: 0.4 * ms) == 110


def test_a_leg_that_is_lifted_counts_from_there(rig):
    rig.health.carrying[6:9] = True
    assert rig.stuck_after_ms(lambda ms: 30.0, 200) is None
    rig.health.carrying[6:9] = False
    # From its last reading under load, at 30 N·m, 90 ms are over after 95.
    assert rig.stuck_after_ms(lambda ms: 30.0 - 0.2 * ms) == 95


def test_what_is_let_go_and_lies_on_the_ground_already_may_stand_still(rig):
    """Measured after a disarm: 12.3 N·m, a leg's own weight, to 0.2 N·m."""
    assert rig.stuck_after_ms(lambda ms: 12.3, 60) is None
    rig.holding[JOINT] = False
    assert rig.stuck_after_ms(lambda ms: 0.2) is None
    # Held again, 90 ms and 12 N·m count from its last limp reading.
    rig.holding[JOINT] = True
    assert rig.stuck_after_ms(lambda ms: 0.2 + 0.2 * ms) == 95


def test_a_joint_that_moves_is_never_stuck(rig):
    assert not any(rig.read(40.0 * (-1) ** turn, moves=True) for turn in range(60))


def test_speed_without_travel_is_found_under_load_too(rig):
    rig.health.carrying[:] = True
    rig.readings.joint_vel[JOINT] = 0.9
    # 0.099 rad are travelled after 110 ms, 0.1035 after 115.
    assert rig.stuck_after_ms(lambda ms: 0.0) == 115


# --- torques that are not those that were asked for ------------------------------------------


class Obeying:
    """Drives that give what they were told, but for what a test adds."""

    def __init__(self):
        self.health = DriveHealth(HARDWARE, MOUNTING, DESC, CFG)
        self.readings = DriveReadings(18)
        self.readings.joint_pos[:] = self.readings.joint_vel[:] = 0.0
        self.readings.mode[:] = DriveMode.RUN
        self.holding = ON.copy()
        self.cycle = 0
        self.told = np.zeros(18)

    def cycles(self, count, *, off_by=0.0):
        """Cycles until one is found, at most `count`; None for not at all."""
        for number in range(1, count + 1):
            self.cycle += 1
            readings = self.readings
            readings.joint_pos += 0.001
            readings.stamp_ns[:] = self.cycle * 5 * MS
            readings.faults[:] = 0
            readings.joint_effort[:] = self.told
            readings.joint_effort[JOINT] += off_by
            self.told = 40.0 * np.sin(0.3 * self.cycle + np.arange(18))
            now_ns, still = self.cycle * 5 * MS, readings.joint_pos
            self.health.update(readings, self.told, ON, self.holding, still, now_ns)
            if readings.faults[JOINT] & DriveFault.WRONG_TORQUE:
                return number
        return None


def test_a_drive_that_gives_what_it_is_told_a_cycle_later_is_right():
    assert Obeying().cycles(400) is None


def test_a_drive_that_is_off_by_more_than_half_of_its_peak_is_found():
    # Peak is 120 N·m. Off by 90: the mean square passes 60² = 90² (1 - 0.98^n) at n = 29.1.
    assert Obeying().cycles(400, off_by=90.0) == 30


def test_a_drive_that_is_off_by_less_than_that_for_good_is_not_found():
    assert Obeying().cycles(400, off_by=55.0) is None


def test_a_limp_drive_owes_no_torque():
    rig = Obeying()
    rig.holding[:] = False
    assert rig.cycles(400, off_by=90.0) is None


def test_a_drive_that_never_said_what_it_gives_is_not_judged():
    rig = Obeying()
    assert rig.cycles(400, off_by=np.nan) is None
