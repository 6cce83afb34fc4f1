"""All drives as one object, on real buses; the drives' end is `krabby.drivers.can.testing`.

Most tests run in one thread: the clock that the bus asks for the time lets the fake drives answer
first, so every test goes the same way however slow the machine is.
"""

import heapq
import itertools
import math
import time
import tomllib

import can
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krabby.drivers.can import wire as can_buses
from krabby.drivers.can.bus import BusCfg, CanJointBus
from krabby.drivers.can.calibration import Calibration
from krabby.drivers.can.can_io import frame_of, message_of, open_bus
from krabby.drivers.can.codec import Frame, Kind, Parameter, Reply, Request
from krabby.drivers.can.hardware import HardwareDescription
from krabby.drivers.can.robstride import RobStrideCodec
from krabby.drivers.can.testing import FakeDrive, FakeDrives, fake_drives, free_multicast_channels
from krabby.drivers.can.types import DriveFault, DriveMode, DriveTargets
from krabby.drivers.errors import DriveError, HardwareError
from krabby.robot.assets import robot_dir
from krabby.robot.description import RobotDescription

MS = 1_000_000
PERIOD_NS = 5 * MS
DESC = RobotDescription.load()
WIRED = HardwareDescription.load(None, DESC)
NAMES = DESC.joint_names
channels = (f"test-{number}" for number in itertools.count())


def soft_robot():
    """The robot with gains that a Damiao drive can represent."""
    values = tomllib.loads((robot_dir() / "robot.toml").read_text())
    for kind in ("hip_yaw", "hip_pitch", "knee"):
        values["joints"][kind]["kd"] = 4.0
    values["safety"]["damp_kd"] = 4.0
    return RobotDescription.parse(values)


def hardware_of(model="robstride-rs04", desc=DESC, **changes):
    """The robot's hardware with other drives; `changes` are of lf_knee."""
    values = tomllib.loads((robot_dir() / "hardware.toml").read_text())
    for joint in values["joints"].values():
        joint["model"] = model
    values["joints"]["lf_knee"] |= changes
    return HardwareDescription.parse(values, desc)


class Rig:
    """The robot's buses in one thread, and a clock that only this moves."""

    def __init__(self, hardware=WIRED, desc=DESC, calibration=None):
        names = {bus.name: next(channels) for bus in hardware.buses}
        self.hardware = hardware.with_interface("virtual", names)
        self.drives = fake_drives(self.hardware)
        self.peers = [open_bus(spec) for spec in self.hardware.buses]
        self.now_ns = 1_000 * MS
        self.waiting = []
        self.due_ns = [0] * len(self.drives)
        self.order = itertools.count()
        self.desc = desc
        self.before, self.after = [], []
        """Second drives under the id of a joint's, and the joint; they answer before or after."""
        self.loses = lambda drive: False
        """Whether an answer is lost on the wire."""
        self.times = lambda drive: 1
        """How often an answer arrives: a frame is repeated when its sender heard no "received"."""
        self.bus = CanJointBus(
            self.hardware,
            calibration or Calibration.nominal(self.hardware),
            desc,
            clock_ns=self.clock_ns,
        )
        self.bus.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bus.close()
        for peer in self.peers:
            peer.shutdown()

    def clock_ns(self):
        self.now_ns += 20_000
        self.pump()
        return self.now_ns

    def pump(self):
        for number, (peer, spec) in enumerate(zip(self.peers, self.hardware.buses, strict=True)):
            joints = self.hardware.drives_of(spec.name)
            while (message := peer.recv(0.0)) is not None:
                hearing = [*self.before, *((j, self.drives[j]) for j in joints), *self.after]
                for joint, drive in (pair for pair in hearing if pair[0] in joints):
                    delay_s = drive.delay_s
                    answer = drive.handle(frame_of(message), self.now_ns * 1e-9)
                    if answer is not None and self.loses(drive):
                        continue
                    for _ in range(0 if answer is None else self.times(drive)):
                        # A drive answers in the order in which it was asked.
                        due_ns = max(self.now_ns + round(delay_s * 1e9), self.due_ns[joint])
                        self.due_ns[joint] = due_ns
                        item = (due_ns, next(self.order), number, answer)
                        heapq.heappush(self.waiting, item)
        while self.waiting and self.waiting[0][0] <= self.now_ns:
            _, _, number, answer = heapq.heappop(self.waiting)
            self.peers[number].send(message_of(answer))

    def start(self, pose=None):
        """Probe and enable at `pose`, by default the stance."""
        pose = self.desc.default_joint_pos if pose is None else pose
        for drive, pos in zip(self.drives, self.bus.mounting.drive_pos(pose), strict=True):
            drive.position = float(pos)
        readings = self.bus.probe()
        self.bus.enable(readings)
        return readings

    def plug_twin(self, joint=2, first=False, position=-0.4):
        """Plug in a second drive with the id of `joint`'s: lf_knee, id 13 on bus front."""
        spec = self.hardware.drives[joint]
        twin = FakeDrive(spec, self.hardware.codec_of(spec.bus), position=position)
        (self.before if first else self.after).append((joint, twin))
        return twin

    def cycle(self, targets=None, wait_ns=2 * MS):
        """One exchange, then the rest of the period."""
        start_ns = self.now_ns
        readings = self.bus.exchange(
            self.hold() if targets is None else targets, start_ns + wait_ns
        )
        self.now_ns = max(self.now_ns, start_ns + PERIOD_NS)
        return readings

    def hold(self, pose=None):
        desc = self.desc
        pose = desc.default_joint_pos if pose is None else pose
        return DriveTargets(pose, np.zeros(18), desc.kp, desc.kd, np.zeros(18))


@pytest.fixture
def rig():
    with Rig() as rig:
        yield rig


def faults(readings, joint):
    return DriveFault(int(readings.faults[joint]))


# --- probing and switching on ------------------------------------------------------------------


def test_a_probe_reads_every_drive_and_leaves_it_off(rig):
    bus = rig.bus
    rig.drives[3].position, rig.drives[3].temperature_c = 0.5, 41.0
    readings = bus.probe()
    # One step of position is 8 pi / 65535 = 0.38 mrad.
    assert readings.joint_pos[3] == pytest.approx(0.5, abs=2e-4)
    assert readings.temperature_c[3] == pytest.approx(41.0)
    assert (readings.mode == DriveMode.OFF).all()
    assert (readings.stamp_ns > 0).all()
    assert all(set(drive.requests) == {Kind.DISABLE, Kind.READ} for drive in rig.drives)


def test_a_probe_names_the_drives_that_do_not_answer(rig):
    rig.drives[4].muted = rig.drives[17].muted = True
    with pytest.raises(DriveError) as error:
        rig.bus.probe()
    assert "lm_hip_pitch (bus middle, id 22), rr_knee (bus rear, id 63)" in str(error.value)
    assert "plug and CAN id" in str(error.value)


def test_a_probe_asks_again_when_a_reply_is_lost(rig):
    rig.drives[0].lose_next = 2
    assert (rig.bus.probe().stamp_ns > 0).all()


def test_drives_are_set_up_before_they_are_switched_on(rig):
    first_commands = {}

    def enable_and_watch():
        for joint, drive in enumerate(rig.drives):
            follow = drive._follow

            def watched(frame, joint=joint, drive=drive, follow=follow):
                follow(frame)
                first_commands.setdefault(joint, (drive.mode, drive.kp, drive.target))

            drive._follow = watched
        return rig.start()

    readings = enable_and_watch()
    assert (readings.mode == DriveMode.RUN).all()
    for joint, drive in enumerate(rig.drives):
        asked = drive.requests
        assert asked[: asked.index(Kind.ENABLE)][-1] == Kind.READ  # the time-out, read back
        assert Kind.CLEAR_FAULTS in asked[: asked.index(Kind.ENABLE)]
        assert drive.parameters[Parameter.CAN_TIMEOUT] == pytest.approx(0.1)
        assert drive.parameters[Parameter.TORQUE_LIMIT] == pytest.approx(120.0)
        # The first target is where the joint is, without stiffness.
        mode, kp, target = first_commands[joint]
        assert (mode, kp) == (DriveMode.RUN, 0.0)
        assert target == pytest.approx(drive.position, abs=4e-4)


def test_a_drive_with_a_fault_is_named_with_the_remedy_and_all_are_off_again(rig):
    rig.drives[7].hard_faults = DriveFault.ENCODER
    with pytest.raises(DriveError, match=r"lr_hip_pitch \(bus rear, id 32\) reports encoder"):
        rig.start()
    assert all(drive.mode == DriveMode.OFF for drive in rig.drives)


def test_a_drive_that_stays_off_is_refused(rig):
    rig.drives[0].ignores_enable = True
    with pytest.raises(DriveError, match=r"lf_hip_yaw .* was switched on and reports off"):
        rig.start()


def test_a_drive_that_forgets_its_time_out_is_refused(rig):
    class Forgetful(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, 0.0 if key == Parameter.CAN_TIMEOUT else value)

    rig.drives[0].parameters = Forgetful(rig.drives[0].parameters)
    with pytest.raises(DriveError, match=r"has can_timeout 0, expected 0\.1"):
        rig.start()


def test_a_drive_that_woke_up_a_turn_away_is_set_right(rig):
    # The knee's range is -2.6 to 0; a drive that powers up in 0 to 2 pi says 2 pi - 1.95.
    rig.drives[2].position = 2.0 * math.pi - 1.95
    readings = rig.bus.probe()
    assert readings.joint_pos[2] == pytest.approx(-1.95, abs=4e-4)


# --- the cycle ---------------------------------------------------------------------------------


def test_joints_go_where_they_are_told_and_say_so(rig):
    readings = rig.start()
    pose = DESC.default_joint_pos + 0.1
    for _ in range(10):
        readings = rig.cycle(rig.hold(pose))
    np.testing.assert_allclose(readings.joint_pos, pose, atol=4e-4)
    assert readings.missed.sum() == 0
    assert rig.bus.wire.late.sum() == 0
    assert (readings.faults == 0).all()


def test_direction_gear_and_offset_lie_between_joint_and_drive():
    hardware = hardware_of(direction=-1, gear=1.5, offset=-1.0)
    with Rig(hardware) as rig:
        readings = rig.start()
        for _ in range(40):
            readings = rig.cycle()
        # drive = -1.5 * (joint + 1.0): the stance's -1.95 is 1.425 at the shaft.
        assert rig.drives[2].position == pytest.approx(1.425, abs=6e-4)
        assert readings.joint_pos[2] == pytest.approx(-1.95, abs=4e-4)
        # kp 250 at the joint is 250 / 1.5^2 = 111.1 at the shaft.
        assert rig.drives[2].kp == pytest.approx(111.1, abs=0.05)


def test_every_drive_says_its_voltage_in_turn(rig):
    rig.start()
    rig.drives[17].voltage_v = 47.0
    for _ in range(14):
        readings = rig.cycle()
    assert readings.voltage_v[17] == pytest.approx(47.0)
    assert np.isfinite(readings.voltage_v).all()


def test_before_drives_are_enabled_an_exchange_only_asks_them(rig):
    rig.bus.probe()
    readings = rig.cycle()
    assert (readings.mode == DriveMode.OFF).all()
    assert all(drive.commands == 0 for drive in rig.drives)


def test_a_target_that_is_no_number_makes_its_joint_limp_and_no_other(rig):
    rig.start()
    targets = rig.hold(DESC.default_joint_pos.copy())
    targets.joint_pos[5] = math.nan
    rig.cycle(targets)
    assert rig.drives[5].kp == 0.0
    assert rig.drives[4].kp == pytest.approx(250.0, abs=0.1)


def test_bus_load_is_measured_over_a_second(rig):
    rig.start()
    for _ in range(220):
        rig.cycle()
    # 200 Hz x (12 frames + 2 on every other cycle) x 160 bits / 1 Mbit/s = 41.6 %, and in the first
    # second some 70 frames of setting up.
    assert rig.bus.bus_load["front"] == pytest.approx(0.416 + 70 * 160e-6, abs=0.005)


def test_disable_switches_off_and_close_is_safe_twice(rig):
    rig.start()
    rig.bus.disable()
    assert all(drive.mode == DriveMode.OFF for drive in rig.drives)
    rig.bus.close()
    rig.bus.close()
    rig.bus.disable()


# --- one id, one drive -------------------------------------------------------------------------

TWIN = "two drives answer to id 13 on bus front, joint lf_knee: unplug one, give it another id"
MAKES = {"robstride-rs04": DESC, "damiao-j8009p": soft_robot()}


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("model", MAKES)
def test_a_probe_refuses_two_drives_under_one_id(model, first):
    with Rig(hardware_of(model, MAKES[model]), MAKES[model]) as rig:
        twin = rig.plug_twin(first=first)
        with pytest.raises(DriveError, match=f"^{TWIN}$"):
            rig.bus.probe()
        assert twin.mode == DriveMode.OFF


@pytest.mark.parametrize("position", [-0.4, -1.95], ids=["elsewhere", "at-the-same-angle"])
def test_a_probe_refuses_the_last_drive_of_a_bus_twice_at_any_angle(rig, position):
    rig.plug_twin(joint=11, position=position)  # rf_knee, asked last of its bus
    with pytest.raises(DriveError, match="two drives answer to id 43 on bus front, joint rf_kn"):
        rig.start()


def test_a_probe_says_who_is_missing_besides(rig):
    rig.drives[2].muted = True  # lf_knee was given the id of lf_hip_pitch
    rig.plug_twin(joint=1)
    with pytest.raises(DriveError) as error:
        rig.bus.probe()
    assert "two drives answer to id 12 on bus front, joint lf_hip_pitch: unplug" in str(error.value)
    assert "no answer from lf_knee (bus front, id 13)" in str(error.value)


def test_a_probe_finds_one_that_answers_every_other_time(rig):
    turn = itertools.count()
    twin = rig.plug_twin()
    rig.loses = lambda drive: drive is twin and next(turn) % 2
    with pytest.raises(DriveError, match=TWIN):
        rig.bus.probe()


def test_a_probe_forgets_what_was_unplugged(rig):
    rig.plug_twin()
    with pytest.raises(DriveError):
        rig.bus.probe()
    rig.after.clear()
    assert rig.bus.probe().conflicts == ()
    assert rig.bus.probe().mode.tolist() == 18 * [DriveMode.OFF]


def test_drives_are_not_switched_on_beside_a_twin(rig):
    readings = rig.bus.probe()
    twin = rig.plug_twin()
    with pytest.raises(DriveError, match=TWIN):
        rig.bus.enable(readings)
    assert {drive.mode for drive in (*rig.drives, twin)} == {DriveMode.OFF}
    rig.cycle()  # and it stays a fault
    assert faults(readings, 2) == DriveFault.SHARED_ID
    assert [(c.bus, c.can_id, c.joint) for c in readings.conflicts] == [("front", 13, "lf_knee")]


def cycles_to_find(rig, most):
    for number in range(1, most + 1):
        if (readings := rig.cycle()).conflicts:
            assert faults(readings, 2) & DriveFault.SHARED_ID
            assert not any(faults(readings, joint) for joint in range(18) if joint != 2)
            return number
    raise AssertionError(f"not found in {most} cycles")


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_a_twin_that_is_plugged_in_is_certain_after_three_exchanges(rig, first):
    rig.start()
    rig.cycle()
    rig.plug_twin(first=first)
    # What is not read in its exchange is in the next: at most four.
    assert cycles_to_find(rig, 4) >= 3
    rig.before.clear()
    rig.after.clear()
    for _ in range(250):
        readings = rig.cycle()
    assert faults(readings, 2) & DriveFault.SHARED_ID  # kept for longer than the second it counts
    rig.bus.enable(readings)
    rig.cycle()
    assert readings.conflicts == ()
    assert (readings.faults == 0).all()


def test_a_twin_with_the_same_angle_that_says_the_same_is_found(rig):
    rig.start()
    for _ in range(3):
        rig.cycle()
    twin = rig.plug_twin(position=rig.drives[2].position)
    twin.mode, twin.torque = rig.drives[2].mode, rig.drives[2].torque
    assert twin.feedback() == rig.drives[2].feedback()
    assert cycles_to_find(rig, 4) >= 3


def test_one_on_a_weak_wire_is_found_when_every_tenth_of_its_answers_arrives(rig):
    rig.start()
    twin, turn = rig.plug_twin(), itertools.count()
    rig.loses = lambda drive: drive is twin and next(turn) % 10
    # The third is 20 exchanges after the first, and that is among the first ten.
    assert cycles_to_find(rig, 32) >= 20


def test_a_repeated_frame_is_no_second_drive(rig):
    rig.start()
    # Once every 0.6 s a frame arrives twelve times: two in any second.
    turn = itertools.count()
    rig.times = lambda drive: 12 if drive is rig.drives[2] and next(turn) % 120 == 60 else 1
    for _ in range(500):
        readings = rig.cycle()
        assert (readings.faults == 0).all()
    assert rig.bus.wire.buses["front"].unexpected == 5 * 11  # of 500 feedbacks and 41 voltages


def test_a_frame_repeated_to_every_drive_in_one_exchange_is_no_second_drive(rig):
    rig.start()
    rig.times = lambda drive: 3
    rig.cycle()
    rig.times = lambda drive: 1
    for _ in range(10):
        readings = rig.cycle()
    assert (readings.faults == 0).all()


def test_answers_to_requests_that_were_given_up_are_no_second_drive(rig):
    rig.start()
    # Five times a second an answer takes 30 ms, and that of the command at 20 ms comes with it.
    for number in range(400):
        rig.drives[2].delay_s = 0.03 * (number % 40 == 0)
        readings = rig.cycle()
    assert rig.bus.wire.buses["front"].unexpected == 10
    assert readings.conflicts == ()


@pytest.mark.parametrize("can_id", [10, 21])
def test_an_id_that_the_bus_does_not_have_is_named_and_marks_the_bus(rig, can_id):
    readings = rig.start()
    spec = msgspec.structs.replace(rig.hardware.drives[2], can_id=can_id)
    stranger = FakeDrive(spec, rig.hardware.codec_of("front"))
    for number in range(4):
        assert (readings.conflicts == ()) == (number < 3)
        rig.peers[0].send(message_of(stranger.feedback()))
        readings = rig.cycle()
    (conflict,) = readings.conflicts
    assert (
        str(conflict)
        == f"a drive with id {can_id} answers on bus front; hardware.toml has "
        + {
            10: "none there with this id",
            21: "lm_hip_yaw (bus middle, id 21)",
        }[can_id]
    )
    marked = [joint for joint in range(18) if faults(readings, joint) == DriveFault.UNKNOWN_ID]
    assert marked == list(rig.hardware.drives_of("front"))


def test_a_probe_refuses_a_drive_that_answers_under_an_id_of_another_bus(rig):
    stranger = rig.plug_twin()
    stranger._out = lambda frame: frame._replace(
        arbitration_id=frame.arbitration_id & ~0xFF00 | 21 << 8
    )
    with pytest.raises(DriveError, match=r"id 21 .* front; hardware.toml has lm_hip_yaw .*own bus"):
        rig.bus.probe()


def test_a_damiao_drive_as_delivered_answers_under_id_0_and_is_refused():
    desc = MAKES["damiao-j8009p"]
    with Rig(hardware_of("damiao-j8009p", desc), desc) as rig:
        twin = rig.plug_twin()
        twin._out = lambda frame: frame._replace(arbitration_id=0)
        with pytest.raises(DriveError, match=r"id 0 .* on bus front; hardware\.toml has no"):
            rig.bus.probe()


def test_a_second_host_that_asks_a_drive_shows_as_answers_without_a_request(rig):
    rig.start()
    other = RobStrideCodec(host_id=0xFE)
    rig.drives[2].codec, asks = other, other.request(Request(Kind.DISABLE, 99))
    assert rig.drives[2].handle(asks, 0.0) is None
    for _ in range(3):
        rig.peers[0].send(message_of(rig.drives[2].feedback()))
        rig.drives[2].codec = rig.drives[0].codec
        readings = rig.cycle()
        rig.drives[2].codec = other
    assert faults(readings, 2) & DriveFault.SHARED_ID


@settings(max_examples=25, deadline=None)
@given(data=st.data(), first=st.booleans(), share=st.floats(0.2, 1.0))
def test_a_twin_is_found_among_lost_and_late_answers(data, first, share):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    with Rig() as rig:
        rig.start()
        twin = rig.plug_twin(first=first)
        rig.loses = lambda drive: drive is twin and rng.random() >= share
        real = rig.drives[2]
        for _ in range(400):
            real.delay_s = rng.choice(DELAYS_S)
            real.lose_next = int(rng.random() < 0.05)
            if (readings := rig.cycle(wait_ns=MS // 2)).conflicts:
                break
        assert faults(readings, 2) & DriveFault.SHARED_ID


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_drive_is_never_taken_for_two_however_late_and_lost_its_answers(seed):
    rng = np.random.default_rng(seed)
    with Rig() as rig:
        rig.start()
        drive = rig.drives[2]
        repeats_ns = -(10**10)

        def times(answering):
            nonlocal repeats_ns
            if answering is not drive or rig.now_ns - repeats_ns < 900 * MS:
                return 1  # two in any second, when the first comes 0.3 s late
            repeats_ns = rig.now_ns
            return int(rng.integers(1, 13))

        rig.times = times
        for _ in range(200):
            drive.delay_s = float(rng.choice([0.0, 0.0, 0.009, 0.03, 0.1, 0.3]))
            drive.lose_next = int(rng.random() < 0.2)
            assert rig.cycle(wait_ns=MS // 5).conflicts == ()


# --- lost and late -----------------------------------------------------------------------------


def test_a_lost_reply_costs_its_drive_three_cycles_and_no_other_drive_anything(rig):
    readings = rig.start()
    rig.cycle()
    rig.drives[0].lose_next = 1
    heard, fresh = rig.drives[0].commands, []
    for _ in range(6):
        start_ns = rig.now_ns
        readings = rig.cycle()
        fresh.append(bool(readings.stamp_ns[0] >= start_ns))
    # Sent at 0 and lost; at 5, 10 and 15 ms the answer might still come; at 20 ms it is given up.
    assert fresh == [False, False, False, False, True, True]
    assert rig.drives[0].commands - heard == 3
    assert readings.missed.tolist() == [1] + 17 * [0]
    assert rig.bus.wire.late.sum() == 0


def test_a_late_reply_is_counted_and_its_drive_asked_again_at_once(rig):
    rig.start()
    rig.cycle()
    rig.drives[0].delay_s = 0.007
    sent_ns = rig.now_ns
    rig.cycle()
    rig.drives[0].delay_s = 0.0
    rig.cycle()  # its answer comes after this one
    readings = rig.cycle()
    assert rig.bus.wire.late.tolist() == [1] + 17 * [0]
    assert readings.missed[0] == 1
    # Settled before sending, so the drive was asked again in the same cycle.
    assert readings.stamp_ns[0] >= sent_ns + 10 * MS


def test_a_lost_reply_leaves_readings_younger_than_the_gate_s_limit(rig):
    rig.start()
    rig.drives[0].lose_next = 1
    oldest = 0
    for _ in range(6):
        readings = rig.cycle()
        oldest = max(oldest, rig.now_ns - readings.stamp_ns[0])
    assert oldest <= DESC.safety.state_stale_s * 1e9


DELAYS_S = (0.0, 0.0, 0.0, 0.004, 0.006, 0.009, 0.012, 0.016, 0.0175)


def lose_and_delay(seed, cycles):
    """A drive answers after up to 17.5 ms or not at all, and says when it measured."""
    rng = np.random.default_rng(seed)
    with Rig() as rig:
        rig.start(np.where(np.arange(18) == 0, 0.0, DESC.default_joint_pos))
        drive = rig.drives[0]
        measured_ns, follow = {}, drive._follow

        def count(frame):
            follow(frame)
            drive.position += 0.001
            measured_ns[round(drive.position, 3)] = rig.now_ns

        drive._follow = count
        limp = DriveTargets.limp(18, 1.0)
        stamp_ns = rig.bus.readings.stamp_ns[0]
        for _ in range(cycles):
            drive.delay_s = rng.choice(DELAYS_S)
            drive.lose_next = int(rng.random() < 0.2)
            start_ns, last_ns = rig.now_ns, stamp_ns
            readings = rig.cycle(limp, wait_ns=MS // 2)
            said = measured_ns.get(round(float(readings.joint_pos[0]), 3))
            stamp_ns = readings.stamp_ns[0]
            if stamp_ns >= start_ns:
                assert said is not None
                assert said >= start_ns
            elif stamp_ns != last_ns and said is not None:
                # It came too late; it claims no more than the time of the command it answers.
                assert stamp_ns <= said


def test_whatever_is_lost_or_late_no_old_reading_passes_for_new():
    lose_and_delay(seed=0, cycles=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_thousands_of_lost_and_late_replies(seed):
    lose_and_delay(seed, cycles=1000)


def test_a_drive_that_is_silent_for_40_ms_has_a_fault_and_loses_it_with_its_next_reply(rig):
    rig.start()
    rig.drives[0].muted = True
    cycles = 0
    while not faults(rig.cycle(), 0) & DriveFault.NO_REPLY:
        cycles += 1
    assert cycles <= 9
    assert faults(rig.bus.readings, 1) == DriveFault(0)
    rig.drives[0].muted = False
    for _ in range(8):
        readings = rig.cycle()
    assert faults(readings, 0) == DriveFault(0)


def test_a_dead_bus_does_not_hold_up_the_others(rig):
    rig.start()
    for joint in rig.hardware.drives_of("front"):
        rig.drives[joint].muted = True
    for _ in range(12):
        start_ns = rig.now_ns
        readings = rig.cycle()
        others = rig.hardware.drives_of("middle") + rig.hardware.drives_of("rear")
        assert (readings.stamp_ns[list(others)] >= start_ns).all()


def test_a_drive_that_was_reset_is_named_and_stays_named(rig):
    rig.start()
    rig.drives[6].mode = DriveMode.OFF
    rig.cycle()
    assert faults(rig.cycle(), 6) == DriveFault.DROPPED_OUT


def test_drives_let_go_when_the_host_falls_silent(rig):
    rig.start()
    rig.now_ns += 101 * MS
    readings = rig.cycle()
    assert (readings.mode == DriveMode.OFF).all()
    assert (readings.faults & DriveFault.DROPPED_OUT != 0).all()


# --- the buses ---------------------------------------------------------------------------------


def test_bus_off_is_named_on_its_joints_until_they_answer(rig):
    rig.start()
    off = can.Message(is_error_frame=True, arbitration_id=0x40, is_extended_id=False, data=bytes(8))
    rig.peers[1].send(off)
    front, middle = rig.hardware.drives_of("front"), rig.hardware.drives_of("middle")
    for joint in middle:
        rig.drives[joint].muted = True
    readings = rig.cycle()
    assert all(faults(readings, joint) & DriveFault.BUS_OFF for joint in middle)
    assert not any(faults(readings, joint) for joint in front)
    assert rig.bus.wire.buses["middle"].state == "off"
    assert rig.bus.wire.buses["middle"].error_frames == 1
    for joint in middle:
        rig.drives[joint].muted = False
    for _ in range(8):
        readings = rig.cycle()
    assert (readings.faults == 0).all()
    assert rig.bus.wire.buses["middle"].state == "ok"


def test_an_interface_that_goes_down_is_a_fault_and_no_exception(rig, monkeypatch):
    rig.start()

    def down(*_, **__):
        raise can.CanOperationError("Network is down")

    for bus in (rig.bus.wire.buses["front"],):
        monkeypatch.setattr(bus.can, "send", down)
        monkeypatch.setattr(bus.can, "recv", down)
    readings = rig.cycle()
    for joint in rig.hardware.drives_of("front"):
        assert faults(readings, joint) & DriveFault.BUS_OFF
    assert rig.bus.wire.buses["front"].send_errors > 0


def test_frames_that_were_held_and_do_not_go_out_owe_no_answer(rig, monkeypatch):
    rig.start()
    front = rig.bus.wire.buses["front"]

    def down(bus):
        if bus is front.can:
            raise can.CanOperationError("Network is down")

    drives = [rig.drives[joint] for joint in front.joints]
    for drive in drives:
        drive.muted = True  # a virtual bus has sent them all the same
    missed = rig.bus.readings.missed.sum()
    with monkeypatch.context() as patched:
        patched.setattr(can_buses, "release", down)
        readings = rig.cycle()
    assert all(faults(readings, joint) & DriveFault.BUS_OFF for joint in front.joints)
    assert (rig.bus.wire.buses["front"].send_errors, readings.missed.sum()) == (1, missed)
    for drive in drives:
        drive.muted = False
    rig.cycle()  # asked at once: nothing was owed
    assert (rig.bus.readings.faults == 0).all()
    assert rig.bus.wire.buses["front"].state == "ok"


def test_frames_of_strangers_change_nothing(rig):
    readings = rig.start()
    before = readings.joint_pos.copy()
    for arbitration_id in (0x02800AFD, 0x02800B01, 0x1800FD0B, 0x7FF):
        for extended in (True, False):
            message = can.Message(
                arbitration_id=arbitration_id & (0x1FFFFFFF if extended else 0x7FF),
                is_extended_id=extended,
                data=b"\xff" * 8,
            )
            rig.peers[0].send(message)
    short = can.Message(arbitration_id=0x02800BFD, data=b"\xff\xff")
    rig.peers[0].send(short)
    readings = rig.cycle()
    np.testing.assert_allclose(readings.joint_pos, before, atol=4e-4)
    assert (readings.faults == 0).all()


def test_a_feedback_that_was_not_asked_for_is_counted_and_dropped(rig):
    rig.start()
    rig.cycle()
    rig.peers[0].send(can.Message(arbitration_id=0x02800BFD, data=b"\xff" * 8))
    readings = rig.cycle()
    assert rig.bus.wire.buses["front"].unexpected == 1
    assert (readings.faults == 0).all()
    np.testing.assert_allclose(readings.joint_pos, DESC.default_joint_pos, atol=4e-4)


def test_a_fault_frame_is_kept_until_faults_are_cleared(rig):
    readings = rig.start()
    reply = Reply(11, Parameter.OTHER, math.nan, 0, int(DriveFault.OVERVOLTAGE))
    rig.peers[0].send(message_of(rig.drives[0].codec.reply(reply)))
    rig.cycle()
    assert faults(rig.cycle(), 0) == DriveFault.OVERVOLTAGE
    rig.bus.enable(readings)
    assert faults(rig.cycle(), 0) == DriveFault(0)


# --- limits ------------------------------------------------------------------------------------


def test_no_frame_asks_for_more_torque_than_the_limit(rig):
    rig.start()
    limits = np.full(18, 30.0)
    rig.bus.set_effort_limits(limits)
    before = [drive.position for drive in rig.drives]
    # 250 N·m/rad times 0.4 rad would be 100 N·m.
    rig.cycle(rig.hold(np.clip(DESC.default_joint_pos - 0.4, DESC.joint_lower, DESC.joint_upper)))
    for drive, position in zip(rig.drives, before, strict=True):
        asked = abs(drive.kp * (drive.target - position))
        assert asked <= 30.0 + 0.05


def test_the_drive_s_own_limit_follows(rig):
    rig.start()
    rig.bus.set_effort_limits(np.full(18, 50.0))
    for _ in range(30):
        rig.cycle()
    assert [drive.parameters[Parameter.TORQUE_LIMIT] for drive in rig.drives] == [50.0] * 18
    assert rig.bus.readings.missed.sum() == 0


def test_a_hot_drive_gets_less_and_then_a_fault(rig):
    rig.start()
    # Half way from 100 to 130 degrees: half of 120 N·m.
    rig.drives[0].temperature_c = 115.0
    rig.cycle()
    rig.cycle()
    assert rig.bus.effort_limits[0] == pytest.approx(60.0)
    assert rig.bus.effort_limits[1] == pytest.approx(120.0)
    rig.drives[0].temperature_c = 131.0
    rig.cycle()
    assert faults(rig.cycle(), 0) == DriveFault.TOO_HOT
    # A quarter of the rated 40 N·m stays, so that the robot sinks and does not fall.
    assert rig.bus.effort_limits[0] == pytest.approx(10.0)


def test_a_sagging_supply_takes_torque_away_and_then_is_a_fault(rig):
    rig.start()
    for drive in rig.drives:
        drive.voltage_v = 39.0  # half way from 42 to 36 V
    # The limits follow at once, so every other request is a torque limit: 24 cycles for six drives.
    for _ in range(30):
        rig.cycle()
    assert rig.bus.effort_limits == pytest.approx(np.full(18, 60.0))
    for drive in rig.drives:
        drive.voltage_v = 35.0
    started_ns = rig.now_ns
    while not (rig.cycle().faults & DriveFault.VOLTAGE_LOW).any():
        assert rig.now_ns - started_ns < 150 * MS


def test_a_stuck_encoder_is_noticed_within_150_ms(rig):
    rig.start()
    rig.drives[8].stuck = True
    started_ns, pose = rig.now_ns, DESC.default_joint_pos.copy()
    while not (readings := rig.cycle(rig.hold(pose.copy()))).faults[8]:
        pose[8] += 0.01
        assert rig.now_ns - started_ns < 150 * MS
    assert faults(readings, 8) == DriveFault.STUCK_ENCODER


def test_standing_still_is_no_stuck_encoder(rig):
    rig.start()
    for _ in range(100):
        readings = rig.cycle()
    assert (readings.faults == 0).all()


def test_a_position_that_jumps_is_noticed_at_once(rig):
    rig.start()
    rig.cycle()
    rig.drives[8].position += 0.5
    assert faults(rig.cycle(DriveTargets.limp(18)), 8) == DriveFault.POSITION_JUMP


# --- Damiao ------------------------------------------------------------------------------------


def test_damiao_drives_are_driven_the_same_way():
    desc = soft_robot()
    with Rig(hardware_of("damiao-j8009p", desc), desc) as rig:
        readings = rig.start()
        assert (readings.mode == DriveMode.RUN).all()
        assert rig.drives[0].parameters[Parameter.CAN_TIMEOUT] == pytest.approx(0.1)
        for _ in range(20):
            readings = rig.cycle(rig.hold(desc.default_joint_pos + 0.1))
        np.testing.assert_allclose(readings.joint_pos, desc.default_joint_pos + 0.1, atol=4e-4)
        assert np.isnan(readings.voltage_v).all()
        assert readings.missed.sum() == 0
        rig.now_ns += 101 * MS
        fault = faults(rig.cycle(), 0)
        assert fault == DriveFault.CAN_TIMEOUT | DriveFault.DROPPED_OUT


def test_a_damiao_drive_with_another_scale_is_refused():
    desc = soft_robot()
    with Rig(hardware_of("damiao-j8009p", desc), desc) as rig:
        rig.drives[0].parameters[Parameter.VELOCITY_RANGE] = 30.0
        with pytest.raises(DriveError, match="has velocity_range 30, expected 45"):
            rig.start()


def test_gains_beyond_a_drive_s_range_are_refused_not_cut():
    with pytest.raises(DriveError, match=r"damiao-j8009p of lf_hip_yaw .* takes kd up to 5"):
        Rig(hardware_of("damiao-j8009p"))


def test_a_joint_range_beyond_the_drive_s_is_refused():
    with pytest.raises(DriveError, match=r"counts from -12.57 to 12.57 rad"):
        Rig(hardware_of(gear=6.0))


# --- other transports --------------------------------------------------------------------------


def test_over_udp_multicast_with_drives_in_threads():
    hardware = WIRED.with_interface("udp_multicast", free_multicast_channels(WIRED))
    patient = BusCfg(answer_s=5.0, probe_s=5.0)  # others may use this machine too
    with FakeDrives(hardware) as fakes:
        bus = CanJointBus(hardware, Calibration.nominal(hardware), DESC, cfg=patient)
        bus.open()
        try:
            stance = bus.mounting.drive_pos(DESC.default_joint_pos)
            for drive, pos in zip(fakes.drives, stance, strict=True):
                drive.position = float(pos)
                drive.tick = lambda now_s: None  # ... for longer than a time-out
            bus.enable(bus.probe())
            targets = DriveTargets(
                DESC.default_joint_pos, np.zeros(18), DESC.kp, DESC.kd, np.zeros(18)
            )
            for _ in range(30):
                readings = bus.exchange(targets, time.monotonic_ns() + 5000 * MS)
            np.testing.assert_allclose(readings.joint_pos, DESC.default_joint_pos, atol=4e-4)
            assert readings.missed.sum() == 0
            assert (readings.mode == DriveMode.RUN).all()
        finally:
            bus.disable()
            bus.close()
        assert all(drive.mode == DriveMode.OFF for drive in fakes.drives)


def test_a_udp_bus_does_not_hear_itself():
    spec = WIRED.with_interface("udp_multicast", free_multicast_channels(WIRED)).buses[0]
    here, there = open_bus(spec), open_bus(spec)
    try:
        for number in range(3):
            here.send(can.Message(arbitration_id=number, data=b"x"))
        assert [there.recv(1.0).arbitration_id for _ in range(3)] == [0, 1, 2]
        there.send(can.Message(arbitration_id=7, data=b"y"))
        assert here.recv(1.0).arbitration_id == 7
        assert here.recv(0.0) is None
    finally:
        here.shutdown()
        there.shutdown()


def test_an_interface_that_is_not_there_is_named_with_the_command_that_brings_it_up():
    bus = CanJointBus(
        WIRED.with_interface("socketcan", {"front": "nocan7"}), Calibration.nominal(WIRED), DESC
    )
    with pytest.raises(DriveError, match=r"bus front \(socketcan nocan7\).*ip link set nocan7 up"):
        bus.open()


def test_a_wrong_interface_is_refused():
    with pytest.raises(HardwareError, match="'slcan'; choose one of socketcan, udp_multi"):
        WIRED.with_interface("slcan")


def test_frames_go_through_python_can_unchanged():
    frame = Frame(0x0180000B, bytes(range(8)), True)
    assert frame_of(message_of(frame)) == frame
