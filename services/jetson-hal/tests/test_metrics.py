import pytest
from krabby.drivers.can import DriveFault
from krabby.hal.metrics import GateMetrics
from krabby_jetson_hal.metrics import Exposition
from prometheus_client import REGISTRY


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


@pytest.fixture
def update(rig):
    """Brings the metrics of the robot and of its gate up to date, as the loop does."""
    exposition = Exposition(rig.robot)
    gate_metrics = GateMetrics(rig.handler, rig.desc.joint_names)

    def update():
        gate_metrics.update({})
        exposition.update()

    return update


@pytest.mark.usefixtures("update")
def test_every_joint_bus_and_fault_is_there_from_the_start(desc):
    for joint in desc.joint_names:
        assert value("krabby_drive_temperature_celsius", joint=joint) is not None
        assert value("krabby_drive_replies_missed_total", joint=joint) is not None
        assert value("krabby_joint_position_radians", joint=joint) is not None
        for fault in DriveFault:
            assert value("krabby_drive_fault_active", joint=joint, fault=fault.name.lower()) == 0
    for bus in ("front", "middle", "rear"):
        assert value("krabby_bus_load_ratio", bus=bus) is not None


def test_what_drives_and_imu_say_is_shown(rig, update):
    rig.bus.silent[4] = True
    rig.slots(3)
    rig.clock.advance(0.002)
    before = value("krabby_drive_replies_missed_total", joint="lm_hip_pitch")
    update()
    assert value("krabby_drive_temperature_celsius", joint="lf_knee") == 31.0
    assert value("krabby_drive_voltage_volts", joint="lf_knee") == 48.0
    assert value("krabby_drive_mode", joint="lf_knee") == 3
    assert value("krabby_drive_replies_missed_total", joint="lm_hip_pitch") - before == 3
    assert value("krabby_bus_load_ratio", bus="rear") == 0.36
    assert value("krabby_imu_age_seconds") == pytest.approx(0.002)
    assert value("krabby_safety_state", state="disarmed") == 1


def test_a_fault_shows_while_it_lasts(rig, update):
    def shown():
        update()
        return value("krabby_drive_fault_active", joint="lf_knee", fault="too_hot")

    rig.bus.bits[2] = DriveFault.TOO_HOT
    rig.slot()
    assert shown() == 1
    assert value("krabby_fault_active", fault="over_temperature") == 1
    rig.bus.bits[2] = 0
    rig.slot()
    assert shown() == 0


def test_an_imu_that_cannot_be_believed_is_named(rig, update):
    rig.imu.silent = True
    rig.slots(10)
    update()
    assert value("krabby_imu_fault_active", fault="silent") == 1
    assert value("krabby_imu_fault_active", fault="jump") == 0
