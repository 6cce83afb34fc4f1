"""What a reset brings back: drives without power, adapters, drives that reboot; and who is who.

On virtual buses in one thread: the clock that is asked for the time lets the fake drives answer.
"""

import dataclasses
import errno
import itertools
import math

import msgspec
import numpy as np
import pytest
from krabby.drivers.can import wire as can_buses
from krabby.drivers.can.bus import CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.can_io import open_bus
from krabby.drivers.can.codec import Kind, Parameter
from krabby.drivers.can.crossing import CrossingWatch
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.testing import SteppedDrives
from krabby.drivers.can.types import DriveFault, DriveMode, DriveTargets
from krabby.drivers.errors import DriveError
from krabby.robot.description import RobotDescription

MS = 1_000_000
DESC = RobotDescription.load()
WIRED = HardwareDescription.load(None, DESC)
KNEE = DESC.joint_index("lf_knee")
numbers = itertools.count()


class Socket:
    """A raw CAN socket: bound to an interface that, once pulled, is gone for good."""

    def __init__(self, spec, opened):
        self._inner, self.gone, self.name = open_bus(spec), False, spec.name
        opened.append(self)

    def send(self, message):
        if self.gone:
            raise OSError(errno.ENODEV, "No such device")
        self._inner.send(message)

    def recv(self, timeout=None):
        return None if self.gone else self._inner.recv(timeout)

    def shutdown(self):
        self._inner.shutdown()


class Rig(SteppedDrives):
    """The drives, and the host's end of their buses."""

    def __init__(self, monkeypatch, calibration=None, hardware=WIRED, desc=DESC):
        super().__init__(hardware, f"recovery-{next(numbers)}")
        self.opened = []
        monkeypatch.setattr(can_buses, "open_bus", lambda spec: Socket(spec, self.opened))
        self.bus = CanJointBus(
            self.hardware,
            calibration or Calibration.nominal(self.hardware),
            desc,
            clock_ns=self.clock_ns,
        )
        self.bus.open()
        self.put(DESC.default_joint_pos)

    def put(self, joint_pos):
        """Turn the shafts to a pose, counted as drives do that woke up there."""
        for drive, pos in zip(self.drives, self.bus.mounting.drive_pos(joint_pos), strict=True):
            drive.position = (float(pos) + math.pi) % (2.0 * math.pi) - math.pi

    def cut_power(self):
        """Every drive boots again: off, parameters forgotten, its angle known within a turn."""
        for drive in self.drives:
            drive.mode = DriveMode.OFF
            drive.parameters[Parameter.CAN_TIMEOUT] = 0.0
            drive.parameters[Parameter.TORQUE_LIMIT] = 0.0
            drive.position = (drive.position + math.pi) % (2.0 * math.pi) - math.pi

    def cycles(self, count, pose=None):
        nothing = np.zeros(18)
        hold = DriveTargets(
            DESC.default_joint_pos if pose is None else pose, nothing, DESC.kp, DESC.kd, nothing
        )
        for _ in range(count):
            start_ns = self.now_ns
            readings = self.bus.exchange(hold, start_ns + 2 * MS)
            self.now_ns = max(self.now_ns, start_ns + 5 * MS)
        return readings

    def close(self):
        self.bus.close()
        super().close()


@pytest.fixture
def build(monkeypatch):
    rigs = []

    def make(calibration=None):
        rigs.append(Rig(monkeypatch, calibration))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(build):
    rig = build()
    rig.bus.enable(rig.bus.probe())
    return rig


# --- recovery ----------------------------------------------------------------------------------


def test_after_a_power_cut_the_turns_are_counted_again(build):
    """lf_knee's drive says 0 at -4.5 rad: at -1.0 it says 3.5, and wakes up with 3.5 - 2 pi; at
    -1.95 it says 2.55, within half a turn."""
    calibration = Calibration.nominal(WIRED)
    offset = calibration.offset.copy()
    offset[KNEE] = -4.5
    rig = build(dataclasses.replace(calibration, offset=offset))
    pose = DESC.default_joint_pos.copy()
    pose[KNEE] = -1.0
    rig.put(pose)
    assert rig.drives[KNEE].position == pytest.approx(3.5 - 2.0 * math.pi)
    readings = rig.bus.probe()
    assert readings.joint_pos[KNEE] == pytest.approx(-1.0, abs=4e-4)
    rig.bus.enable(readings)
    rig.cycles(40)  # it walks to -1.95, the default pose
    assert readings.joint_pos[KNEE] == pytest.approx(-1.95, abs=1e-3)
    rig.cut_power()
    rig.cycles(3)
    # Counted from where it woke up before, it is a turn away, and a jump besides.
    assert readings.joint_pos[KNEE] == pytest.approx(-1.95 + 2.0 * math.pi, abs=1e-3)
    assert readings.faults[KNEE] & DriveFault.POSITION_JUMP
    rig.bus.recover()
    assert readings.joint_pos[KNEE] == pytest.approx(-1.95, abs=1e-3)
    assert not rig.cycles(3).faults.any()


def test_a_recovery_beats_at_every_request_so_that_it_does_not_look_stuck(rig):
    """18 drives that answer late take longer than the 0.8 s after which a loop is stuck."""
    for drive in rig.drives:
        drive.requests.clear()
    beats = []
    rig.bus.recover(lambda: beats.append(rig.now_ns))
    alone = (Kind.CLEAR_FAULTS, Kind.WRITE, Kind.ENABLE)
    asked = sum(request in alone for drive in rig.drives for request in drive.requests)
    assert asked == 18 * (1 + 3 + 1)  # written: run mode, time-out, torque limit
    assert len(beats) > asked


def test_after_a_power_cut_time_out_and_limit_are_written_again(rig):
    rig.cut_power()
    rig.bus.recover()
    for drive in rig.drives:
        assert drive.mode == DriveMode.RUN
        assert drive.parameters[Parameter.CAN_TIMEOUT] == pytest.approx(0.1)
        assert drive.parameters[Parameter.TORQUE_LIMIT] == pytest.approx(120.0)


def test_an_adapter_that_was_plugged_in_again_is_opened_again(rig):
    front = next(socket for socket in rig.opened if socket.name == "front")
    front.gone = True
    readings = rig.cycles(3)
    assert readings.faults[KNEE] & DriveFault.BUS_OFF
    assert len(rig.opened) == 3
    rig.bus.recover()
    assert len(rig.opened) == 6
    assert not rig.cycles(3).faults.any()
    assert (readings.mode == DriveMode.RUN).all()


def test_while_an_adapter_is_away_a_reset_names_it_and_drives_of_the_others_are_off(
    rig, monkeypatch
):
    def without_rear(spec):
        if spec.name == "rear":
            raise DriveError("cannot open bus rear (socketcan can2): No such device")
        return Socket(spec, rig.opened)

    monkeypatch.setattr(can_buses, "open_bus", without_rear)
    with pytest.raises(DriveError, match="cannot open bus rear"):
        rig.bus.recover()
    readings = rig.cycles(12)
    assert readings.faults[DESC.joint_index("lr_knee")] & DriveFault.BUS_OFF
    assert not readings.faults[KNEE] & DriveFault.BUS_OFF
    assert rig.drives[KNEE].mode == DriveMode.OFF
    monkeypatch.setattr(can_buses, "open_bus", lambda spec: Socket(spec, rig.opened))
    rig.bus.recover()
    assert not rig.cycles(3).faults.any()


def test_a_bus_that_was_off_is_back_with_a_reset(rig):
    rig.bus.wire.buses["middle"].state = "off"  # as the kernel's error frame has it
    for joint in rig.hardware.drives_of("middle"):
        rig.drives[joint].muted = True
    assert rig.cycles(3).faults[4] & DriveFault.BUS_OFF
    for joint in rig.hardware.drives_of("middle"):
        rig.drives[joint].muted = False
        rig.drives[joint].mode = DriveMode.OFF
    rig.bus.recover()
    assert not rig.cycles(3).faults.any()


def test_a_drive_that_reboots_is_off_until_a_reset(rig):
    rig.drives[KNEE].mode = DriveMode.OFF
    assert rig.cycles(3).faults[KNEE] & DriveFault.DROPPED_OUT
    rig.bus.recover()
    readings = rig.cycles(3)
    assert readings.mode[KNEE] == DriveMode.RUN
    assert not readings.faults.any()


def test_a_reset_beside_a_drive_that_is_still_away_switches_none_on(rig):
    rig.drives[KNEE].muted = True
    with pytest.raises(DriveError, match=r"no answer from lf_knee \(bus front, id 13\)"):
        rig.bus.recover()
    rig.cycles(2)
    assert {drive.mode for drive in rig.drives} == {DriveMode.OFF}


# --- swapped buses -----------------------------------------------------------------------------


def test_exchanged_adapters_are_recognised_by_who_answers(build):
    rig = build()
    rig.order = [2, 1, 0]
    with pytest.raises(DriveError) as error:
        rig.bus.probe()
    said = str(error.value)
    rear, front = rig.hardware.buses[2].channel, rig.hardware.buses[0].channel
    assert f"drives of bus front answer on {rear}, where those of rear belong" in said
    assert f"drives of bus rear answer on {front}, where those of front belong" in said
    assert "krabby drives adapters" in said
    rig.order = [0, 1, 2]
    assert rig.bus.probe().conflicts == ()


def test_a_dead_bus_is_not_taken_for_an_exchanged_one(build):
    rig = build()
    for joint in rig.hardware.drives_of("front"):
        rig.drives[joint].muted = True
    with pytest.raises(DriveError, match=r"no answer from lf_hip_yaw .*if all of a bus"):
        rig.bus.probe()


# --- identity ----------------------------------------------------------------------------------


def real(rig):
    """Drives that are not emulated: each has a number of its maker."""
    for number, drive in enumerate(rig.drives):
        drive.identity = f"{0x31FFD5054843 + number:016x}"
    return tuple(drive.identity for drive in rig.drives)


def test_a_probe_reads_every_drive_s_number(build):
    rig = build()
    numbers = real(rig)
    rig.bus.probe()
    assert rig.bus.identities == numbers


def test_emulated_drives_need_no_operator_and_others_do(build):
    rig = build()
    rig.bus.probe()
    assert rig.bus.unconfirmed == ""
    real(rig)
    rig.bus.probe()
    assert "never confirmed; run krabby drives identify" in rig.bus.unconfirmed


def test_a_drive_without_a_number_is_used_and_not_compared(build):
    rig = build()
    numbers = real(rig)
    rig.drives[KNEE].identity = ""
    rig.bus.probe()
    assert rig.bus.identities[KNEE] == ""
    confirmed = dataclasses.replace(
        rig.bus.calibration, measured="now", confirmed="now", identities=numbers
    )
    assert confirmed.unconfirmed(rig.bus.identities) == ""


def test_a_spare_drive_is_another_drive(build):
    rig = build()
    before = real(rig)
    rig.drives[KNEE].identity = "00000000deadbeef"
    rig.bus.probe()
    confirmed = dataclasses.replace(
        rig.bus.calibration, measured="now", confirmed="now", identities=before
    )
    said = confirmed.unconfirmed(rig.bus.identities)
    assert said.startswith(
        "lf_knee has another drive (00000000deadbeef) than when it was confirmed"
    )


def test_two_drives_that_changed_places_are_named(build):
    rig = build()
    before = real(rig)
    other = DESC.joint_index("rm_knee")
    rig.drives[KNEE].identity, rig.drives[other].identity = before[other], before[KNEE]
    rig.bus.probe()
    confirmed = dataclasses.replace(
        rig.bus.calibration, measured="now", confirmed="now", identities=before
    )
    said = confirmed.unconfirmed(rig.bus.identities)
    assert "lf_knee has the drive of rm_knee, rm_knee has the drive of lf_knee" in said


def test_what_was_confirmed_is_read_back(tmp_path):
    path = tmp_path / "calibration.toml"
    numbers = ("00000000deadbeef", *[""] * 17)
    calibration = dataclasses.replace(
        Calibration.nominal(WIRED), confirmed="2026-11-30", identities=numbers
    )
    calibration.save(path)
    read = Calibration.load(path, WIRED)
    assert (read.confirmed, read.identities) == ("2026-11-30", numbers)


def test_a_calibration_from_before_there_were_numbers_is_read_and_not_confirmed(tmp_path):
    path = tmp_path / "calibration.toml"
    Calibration.nominal(WIRED).save(path)
    path.write_text(path.read_text().replace('confirmed = ""\n', ""))
    assert "never confirmed" in Calibration.load(path, WIRED).unconfirmed([""] * 18)


def test_a_damiao_drive_that_answers_under_another_one_s_id_is_named(monkeypatch):
    """lf_hip_pitch, id 12, has the MST_ID of lf_knee, id 13, and the other way round."""
    safety = dataclasses.replace(DESC.safety, damp_kd=4.0)
    soft = dataclasses.replace(DESC, kd=np.full(18, 4.0), safety=safety)
    drives = tuple(
        msgspec.structs.replace(drive, model_name="damiao-j8009p") for drive in WIRED.drives
    )
    rig = Rig(monkeypatch, hardware=dataclasses.replace(WIRED, drives=drives), desc=soft)
    crossed = {0x10C: 0x10D, 0x10D: 0x10C}
    for drive in rig.drives:
        drive._out = lambda frame: frame._replace(
            arbitration_id=crossed.get(frame.arbitration_id, frame.arbitration_id)
        )
    with pytest.raises(DriveError) as error:
        rig.bus.probe()
    rig.close()
    assert "lf_hip_pitch (bus front, id 12) is asked and lf_knee answers" in str(error.value)
    assert "MST_ID" in str(error.value)


# --- joints that follow each other's commands ---------------------------------------------------


def watch(pos_of, cycles=200):
    """After how many cycles at 200 Hz a pair is found; `pos_of(targets)` are the angles."""
    crossing, base = CrossingWatch(18), DESC.default_joint_pos
    for cycle in range(cycles):
        phase = 2.0 * math.pi * (0.005 * cycle + np.arange(18) / 18)
        target = base + 0.3 * np.sin(phase)
        crossing.update(pos_of(target), target, np.ones(18, bool))
        if crossing.pairs:
            return cycle, crossing.pairs
    return None, ()


def test_joints_that_follow_themselves_are_not_crossed():
    assert watch(lambda target: target + 0.05) == (None, ())


def test_a_joint_that_is_held_fast_is_not_crossed():
    def held(target):
        pos = target.copy()
        pos[KNEE] = -1.0
        return pos

    assert watch(held) == (None, ())


def test_joints_that_follow_each_other_are_named_within_half_a_second():
    other = DESC.joint_index("rf_knee")

    def crossed(target):
        pos = target.copy()
        pos[[KNEE, other]] = target[[other, KNEE]]
        return pos

    cycle, pairs = watch(crossed)
    assert pairs == ((KNEE, other),)
    assert cycle <= 100


def test_the_fault_of_crossed_joints_stays_until_a_reset(rig):
    first, second = DESC.joint_index("lf_hip_yaw"), DESC.joint_index("rf_hip_yaw")
    one, other = rig.drives[first], rig.drives[second]
    own = one._follow, other._follow
    one._follow, other._follow = other._follow, one._follow
    pose = DESC.default_joint_pos.copy()
    pose[first] += 0.4
    readings = rig.cycles(80, pose)
    assert readings.crossed == ((first, second),)
    assert readings.faults[first] & readings.faults[second] & DriveFault.CROSSED
    one._follow, other._follow = own
    rig.bus.recover()
    assert rig.cycles(3).crossed == ()
