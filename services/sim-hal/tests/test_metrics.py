"""What the simulator exposes, on the fake clock."""

import pytest
from prometheus_client import REGISTRY
from sim_hal.metrics import Exposition


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


def test_a_new_state_of_the_gate_is_stamped_once(simulator, clock):
    sim = simulator(auto_arm=False)
    exposition = Exposition(sim)
    exposition.note_state(clock())
    for _ in range(3):
        clock.advance(0.005)
        sim.advance(clock(), clock(), 2)
        exposition.note_state(clock())
    sim.on_safety("estop", "test")
    exposition.note_state(2_000_000_000)
    exposition.note_state(3_000_000_000)
    assert value("krabby_safety_state_entered_seconds", state="disarmed") == 1.0
    assert value("krabby_safety_state_entered_seconds", state="estop") == 2.0
    assert value("krabby_safety_state", state="estop") == 1.0
    assert value("krabby_safety_state", state="disarmed") == 0.0


def test_every_joint_shows_angle_target_and_torque_under_its_limit(simulator, clock, desc):
    sim = simulator()
    exposition = Exposition(sim)
    clock.advance(0.005)
    sim.advance(clock(), clock(), 2)
    exposition.update({}, 1.0)
    for index, joint in enumerate(desc.joint_names):
        shown = value("krabby_joint_position_radians", joint=joint)
        assert shown == pytest.approx(sim.measured.joint_pos[index])
        torque = value("krabby_joint_effort_newton_meters", joint=joint)
        assert 0.0 <= torque <= value("krabby_joint_effort_limit_newton_meters", joint=joint)
