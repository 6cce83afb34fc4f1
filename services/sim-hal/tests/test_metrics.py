from types import SimpleNamespace

import pytest
from krabby.hal.backend import Slot
from krabby.hal.handler import GateHandler
from krabby.hal.metrics import GateMetrics
from krabby_proto import CommandStatus
from krabby_sim_hal.metrics import Exposition
from prometheus_client import REGISTRY

SLOT_NS = 5_000_000


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


class Rig:
    """A simulator behind its gate, with the metrics of both."""

    def __init__(self, sim):
        self.sim = sim
        self.handler = GateHandler(sim)
        self._exposition = Exposition(sim)
        self.gate_metrics = GateMetrics(self.handler, sim.desc.joint_names)

    def slot(self):
        now_ns = self.sim.clock_ns()
        self.handler.cycle(Slot(now_ns, now_ns, 1, now_ns + SLOT_NS))

    def update(self, commands=None):
        self.gate_metrics.update(commands or {})
        self._exposition.update()


@pytest.fixture
def rig(simulator):
    return Rig(simulator(auto_arm=False))


def test_the_safety_state_and_faults_are_one_hot(rig):
    rig.update()
    assert value("krabby_safety_state", state="disarmed") == 1
    assert value("krabby_safety_state", state="active") == 0
    assert value("krabby_fault_active", fault="tilt") == 0
    rig.handler.on_safety("estop", "test")
    rig.update()
    assert value("krabby_safety_state", state="disarmed") == 0
    assert value("krabby_safety_state", state="estop") == 1
    assert value("krabby_fault_active", fault="estop") == 1


def test_counters_catch_up_with_what_was_counted(rig):
    clamped = {"joint": "lf_hip_yaw", "kind": "rate"}

    def counted():
        return (
            value("krabby_falls_total"),
            value("krabby_command_clamped_total", **clamped),
            value("krabby_commands_total", status="applied"),
        )

    before = counted()
    rig.sim.falls = 2
    rig.handler.rate_clamps[0] = 7
    rig.update({"applied": 40})
    rig.update({"applied": 45})
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 7, 45]


@pytest.mark.usefixtures("rig")
def test_every_status_and_joint_is_there_from_the_start(desc):
    for status in CommandStatus:
        assert value("krabby_commands_total", status=status.name.lower()) is not None
    for name in desc.joint_names:
        assert value("krabby_joint_effort_rms_newton_meters", joint=name) is not None
        assert value("krabby_command_clamped_total", joint=name, kind="position") is not None


def test_the_real_time_factor_is_simulated_over_real_time(rig, monkeypatch):
    now_s = [100.0]
    wall = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr("krabby_sim_hal.backend.time", wall)
    for _ in range(3):  # 15 ms
        rig.sim.clock_ns.advance(0.005)
        rig.slot()
    now_s[0] += 0.02
    rig.update()
    assert value("krabby_real_time_factor") == pytest.approx(0.75)


def test_a_new_state_of_the_gate_is_stamped_once(rig, clock):
    rig.gate_metrics.note_state(clock())
    for _ in range(3):
        clock.advance(0.005)
        rig.slot()
        rig.gate_metrics.note_state(clock())
    rig.handler.on_safety("estop", "test")
    rig.gate_metrics.note_state(2_000_000_000)
    rig.gate_metrics.note_state(3_000_000_000)
    assert value("krabby_safety_state_entered_seconds", state="disarmed") == 1.0
    assert value("krabby_safety_state_entered_seconds", state="estop") == 2.0


def test_every_joint_shows_angle_target_and_torque_under_its_limit(rig, clock, desc):
    clock.advance(0.005)
    rig.slot()
    rig.update()
    for index, joint in enumerate(desc.joint_names):
        shown = value("krabby_joint_position_radians", joint=joint)
        assert shown == pytest.approx(rig.sim.measured.joint_pos[index])
        torque = value("krabby_joint_effort_newton_meters", joint=joint)
        assert 0.0 <= torque <= value("krabby_joint_effort_limit_newton_meters", joint=joint)
