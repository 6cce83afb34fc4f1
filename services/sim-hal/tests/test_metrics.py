import pytest
from krabby_proto import CommandStatus
from krabby_sim_hal.metrics import Exposition
from prometheus_client import REGISTRY


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


@pytest.fixture
def sim(simulator):
    return simulator()


def test_the_safety_state_and_faults_are_one_hot(sim):
    Exposition(sim).update({}, 1.0)
    assert value("krabby_safety_state", state="disarmed") == 1
    assert value("krabby_safety_state", state="active") == 0
    assert value("krabby_fault_active", fault="tilt") == 0
    sim.on_safety("estop", "test")
    Exposition(sim).update({}, 1.0)
    assert value("krabby_safety_state", state="disarmed") == 0
    assert value("krabby_safety_state", state="estop") == 1
    assert value("krabby_fault_active", fault="estop") == 1


def test_counters_catch_up_with_what_was_counted(sim):
    exposition = Exposition(sim)
    clamped = {"joint": "lf_hip_yaw", "kind": "rate"}

    def counted():
        return (
            value("krabby_falls_total"),
            value("krabby_command_clamped_total", **clamped),
            value("krabby_commands_total", status="applied"),
        )

    before = counted()
    sim.falls = 2
    sim.handler.rate_clamps[0] = 7
    exposition.update({"applied": 40}, 1.0)
    exposition.update({"applied": 45}, 1.0)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 7, 45]


def test_every_status_and_joint_is_there_from_the_start(sim, desc):
    Exposition(sim)
    for status in CommandStatus:
        assert value("krabby_commands_total", status=status.name.lower()) is not None
    for name in desc.joint_names:
        assert value("krabby_joint_effort_rms_newton_meters", joint=name) is not None
        assert value("krabby_command_clamped_total", joint=name, kind="position") is not None


def test_the_real_time_factor_is_what_it_was_told(sim):
    Exposition(sim).update({}, 0.75)
    assert value("krabby_real_time_factor") == 0.75


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
