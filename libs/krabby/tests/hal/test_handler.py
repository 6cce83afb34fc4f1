"""What a HAL answers to commands and operators, with any back end."""

import numpy as np
import pytest
from krabby.hal.backend import HalBackend, Reading, SimulatedClock, Slot
from krabby.hal.handler import GateHandler
from krabby.hal.measurement import Measurement, StatePayload
from krabby.hal.metrics import GateMetrics
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock
from krabby.safety.gate import DriveMode
from krabby_proto import COMMAND, STATE, CommandStatus, Fault, SafetyState, decode, encode, unpack
from prometheus_client import REGISTRY

DESC = RobotDescription.load()


class Drives(HalBackend):
    """Joints that stand where they are put; drives that take what they are given 2 ms later."""

    name = "some-hal"
    desc = DESC

    def __init__(self, clock):
        self.clock_ns = clock
        self.measured = Measurement(18, 6)
        self.measured.joint_pos[:] = DESC.default_joint_pos
        self.calls = []
        """Modes written and `read`, in order."""
        self.written = []
        self.faults = Fault(0)
        self.took_ns = 0
        """How long the next read takes."""
        self.incomplete = False
        self.blocked = ""
        self.operations = []

    def read(self, slot):
        self.calls.append("read")
        self.clock_ns.now_ns += self.took_ns
        measured = None if self.incomplete else self.measured
        return Reading(measured, slot.woke_ns, self.faults)

    def write(self, drive, now_ns):
        self.calls.append(drive.mode)
        self.written.append(drive)
        return now_ns + 2_000_000

    def obstacle(self, op, gate):
        return self.blocked

    def operated(self, op, *, granted):
        self.operations.append((op, granted))

    def extra(self):
        return {"a": 1}


class Rig:
    """A gate behind its handler, and time that passes in slots of 5 ms."""

    def __init__(self):
        self.clock = FakeClock()
        self.drives = Drives(self.clock)
        self.handler = GateHandler(self.drives)
        self.gate = self.handler.gate
        self.actuated = []
        self.handler.on_actuated = lambda message, applied_ns: self.actuated.append(applied_ns)

    def command(self, joint_pos):
        now = self.clock()
        frames = encode(
            COMMAND, joint_pos, instance_id=1, sequence=1, capture_ns=now, publish_ns=now
        )
        return self.handler.on_command(decode(frames))

    def slot(self):
        self.clock.advance(0.005)
        now_ns = self.clock()
        return self.handler.cycle(Slot(now_ns, now_ns, 1, now_ns + 5_000_000))

    def active(self):
        self.slot()
        assert self.handler.on_safety("arm", "test").ok
        for _ in range(110):
            self.slot()
            self.command(DESC.default_joint_pos)
        return self


@pytest.fixture
def rig():
    return Rig()


def test_before_arming_a_valid_command_moves_nothing(rig):
    outcome = rig.command(DESC.default_joint_pos)
    assert outcome.status is CommandStatus.NOT_ARMED
    assert outcome.safety_state == SafetyState.DISARMED
    assert rig.drives.written == []


def test_an_applied_command_says_when_it_reaches_the_drives(rig):
    rig.active()
    rig.actuated.clear()
    rig.slot()
    outcome = rig.command(DESC.default_joint_pos)
    assert outcome.status is CommandStatus.APPLIED
    assert outcome.applied_ns == rig.clock() + 2_000_000
    assert rig.actuated == [outcome.applied_ns]


def test_clamps_are_counted_by_joint(rig):
    rig.active()
    rig.slot()
    beyond = DESC.default_joint_pos.copy()
    beyond[4] = 2.0  # lm_hip_pitch ends at 1.3 - 0.02, and may move 12 rad/s * 5 ms
    outcome = rig.command(beyond)
    assert outcome.position_clamp_mask == 1 << 4
    assert outcome.rate_clamp_mask == 1 << 4
    assert rig.handler.position_clamps.tolist() == [0] * 4 + [1] + [0] * 13


def test_a_damped_robot_refuses_commands_for_safety(rig):
    rig.active()
    rig.gate.raise_fault(Fault.BUS, rig.clock())
    outcome = rig.command(DESC.default_joint_pos)
    assert outcome.status is CommandStatus.REJECTED_SAFETY
    assert outcome.fault_bits == Fault.BUS


def test_an_operators_stop_reaches_the_drives_at_once_and_a_question_does_not(rig):
    rig.active()
    rig.drives.written.clear()
    assert rig.handler.on_safety("status", "test").state == "active"
    assert rig.drives.written == []
    answer = rig.handler.on_safety("estop", "test")
    assert (answer.state, answer.faults) == ("estop", ("estop",))
    assert not rig.drives.written[-1].kp.any()
    assert rig.drives.operations[-1] == ("estop", True)


def test_what_a_back_end_objects_to_never_reaches_the_gate(rig):
    rig.slot()
    rig.drives.blocked = "the button is pressed; release it"
    answer = rig.handler.on_safety("arm", "test")
    assert (answer.ok, answer.reason) == (False, "the button is pressed; release it")
    assert rig.gate.state is SafetyState.DISARMED
    assert rig.drives.operations == []


# --- a cycle -------------------------------------------------------------------------------


def test_the_gate_is_asked_before_the_drives_are_addressed_and_after_it_has_judged(rig):
    rig.active()
    rig.drives.calls.clear()
    rig.slot()
    assert rig.drives.calls == [DriveMode.POSITION, "read", DriveMode.POSITION]


def test_after_a_stall_nothing_stale_goes_out(rig):
    rig.active()
    rig.clock.advance(0.1)  # as long as the gate lets a measurement be missing
    rig.drives.calls.clear()
    rig.slot()
    assert rig.drives.calls == [DriveMode.DAMP, "read", DriveMode.DAMP]


def test_a_stall_in_the_reading_is_judged_before_the_next_write(rig):
    rig.active()
    rig.drives.took_ns = 100_000_000
    rig.drives.calls.clear()
    rig.slot()
    assert rig.drives.calls == [DriveMode.POSITION, "read", DriveMode.DAMP]
    assert rig.gate.faults == Fault.STATE_GAP


def test_drives_that_are_addressed_by_the_reading_are_written_to_once(rig):
    rig.active()
    rig.drives.buffered = True
    rig.drives.calls.clear()
    rig.slot()
    assert rig.drives.calls == [DriveMode.POSITION, "read"]


def test_a_fault_of_the_back_end_damps_in_the_same_cycle(rig):
    rig.active()
    rig.drives.faults = Fault.BUS | Fault.DRIVE
    rig.drives.calls.clear()
    rig.slot()
    assert rig.drives.calls == [DriveMode.POSITION, "read", DriveMode.DAMP]
    assert rig.handler.summary()["gate_faults"] == {"drive": 1, "bus": 1}


def test_an_incomplete_measurement_is_not_judged(rig):
    rig.active()
    rig.drives.incomplete = True
    for _ in range(6):  # 30 ms: the gate holds
        assert rig.slot().measured is None
        rig.command(DESC.default_joint_pos)
    assert rig.gate.state is SafetyState.HOLD


def test_an_answer_in_lock_step_is_written_later_than_it_is_given():
    clock = FakeClock()
    drives = Drives(clock)
    handler = GateHandler(drives, answer_delay_ns=2_500_000)
    times = []
    drives.write = lambda drive, now_ns: times.append(now_ns) or now_ns
    handler.cycle(Slot(clock(), clock(), 1, clock() + 5_000_000))
    handler.on_safety("estop", "test")
    assert times == [clock(), clock(), clock() + 2_500_000]


def test_the_hello_names_the_robot():
    hello = Drives(FakeClock()).hello()
    assert (hello["service"], hello["clock"]) == ("some-hal", "monotonic")
    assert hello["robot"]["hash"] == DESC.content_hash
    assert hello["camera"] == {}
    assert hello["extra"] == {"a": 1}
    assert Drives(SimulatedClock()).hello()["clock"] == "simulated"


def test_every_field_of_the_state_comes_from_the_measurement_of_its_name():
    measured = Measurement(18, 6)
    for number, (name, at) in enumerate(STATE.slices.items()):
        getattr(measured, name)[:] = number + np.arange(at.stop - at.start) / 100.0
    fields = unpack(STATE, StatePayload().fill(measured))
    for number, name in enumerate(STATE.slices):
        expected = number + np.arange(fields[name].size) / 100.0
        assert fields[name] == pytest.approx(expected, abs=1e-5), name


def test_the_gate_is_exposed_one_hot_and_its_changes_are_stamped(rig):
    metrics = GateMetrics(rig.handler, DESC.joint_names)
    rig.active()
    metrics.note_state(5_000_000_000)
    metrics.note_state(6_000_000_000)
    metrics.update({"applied": 7})

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels)

    assert value("krabby_safety_state", state="active") == 1
    assert value("krabby_safety_state", state="disarmed") == 0
    assert value("krabby_safety_state_entered_seconds", state="active") == 5.0
    assert value("krabby_joint_effort_limit_newton_meters", joint="lf_knee") == 120.0
    assert value("krabby_commands_total", status="applied") >= 7
