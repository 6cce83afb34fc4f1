"""What a HAL answers to commands and operators, whatever moves its joints."""

import numpy as np
import pytest
from krabby.hal.handler import GateHandler, follow_gate, hal_hello
from krabby.hal.measurement import Measurement, StatePayload
from krabby.hal.metrics import GateMetrics
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import FakeClock
from krabby.safety.gate import Fault, GateCfg, SafetyGate, SafetyState
from krabby_proto import COMMAND, STATE, CommandStatus, decode, encode, unpack
from prometheus_client import REGISTRY

DESC = RobotDescription.load()


class Rig:
    """A gate behind its handler; drives that take what they are given 2 ms later."""

    def __init__(self):
        self.clock = FakeClock()
        self.gate = SafetyGate(GateCfg.from_description(DESC))
        self.handler = GateHandler(self.gate, clock_ns=self.clock, actuate=self._actuate)
        self.drives = []
        self.actuated = []
        self.handler.on_actuated = lambda message, applied_ns: self.actuated.append(applied_ns)

    def _actuate(self, drive, now_ns):
        self.drives.append(drive)
        return now_ns + 2_000_000

    def command(self, joint_pos):
        now = self.clock()
        frames = encode(
            COMMAND, joint_pos, instance_id=1, sequence=1, capture_ns=now, publish_ns=now
        )
        return self.handler.on_command(decode(frames))

    def slot(self):
        self.clock.advance(0.005)
        pose = DESC.default_joint_pos
        self.gate.observe(pose, np.zeros(18), np.zeros(18), [0, 0, 0, 1], self.clock())
        self.gate.step(self.clock())

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
    assert rig.drives == []


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
    rig.drives.clear()
    assert rig.handler.on_safety("status", "test").state == "active"
    assert rig.drives == []
    answer = rig.handler.on_safety("estop", "test")
    assert (answer.state, answer.faults) == ("estop", ("estop",))
    assert not rig.drives[-1].kp.any()


def test_every_reply_carries_the_gates_state_and_faults(rig):
    class Server:
        safety_state = fault_bits = None

    rig.gate.raise_fault(Fault.IMU, rig.clock())
    follow_gate(Server, rig.gate)
    assert (Server.safety_state, Server.fault_bits) == (SafetyState.DAMP, Fault.IMU)


def test_the_hello_names_the_robot():
    hello = hal_hello("some-hal", DESC, extra={"a": 1})
    assert hello["service"] == "some-hal"
    assert hello["robot"]["hash"] == DESC.content_hash
    assert hello["camera"] == {}
    assert hello["extra"] == {"a": 1}


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
    metrics.update(Measurement(18, 6), rig.drives[-1], {"applied": 7})

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels)

    assert value("krabby_safety_state", state="active") == 1
    assert value("krabby_safety_state", state="disarmed") == 0
    assert value("krabby_safety_state_entered_seconds", state="active") == 5.0
    assert value("krabby_joint_effort_limit_newton_meters", joint="lf_knee") == 120.0
    assert value("krabby_commands_total", status="applied") >= 7
