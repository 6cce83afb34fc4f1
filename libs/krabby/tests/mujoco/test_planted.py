"""Faults between the robot and its HAL."""

import numpy as np
import pytest
from krabby.config import ConfigError
from krabby.hal.measurement import Measurement
from krabby.mujoco.config import PlantedCfg
from krabby.mujoco.planted import PlantedFault
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby.safety.gate import DriveCommand, DriveMode

DESC = RobotDescription.load()
LF_YAW, RF_KNEE = (DESC.joint_names.index(name) for name in ("lf_hip_yaw", "rf_knee"))


def measured():
    out = Measurement(18, 6)
    out.joint_pos[:] = np.arange(18.0)
    out.base_ang_vel_b[:] = (1.0, 2.0, 3.0)
    out.base_lin_acc_b[:] = (0.0, 0.0, 9.81)
    out.foot_contact[:] = 1.0
    return out


def told():
    targets = np.arange(100.0, 118.0)
    ones = np.ones(18)
    return DriveCommand(DriveMode.POSITION, targets, 250.0 * ones, 10.0 * ones, 120.0 * ones)


def test_a_turned_joint_is_measured_and_driven_with_the_other_sign():
    fault = PlantedFault(PlantedCfg(kind="joint-sign", where=("rf_knee",)), DESC)
    assert fault.measurement(measured(), 0).joint_pos[RF_KNEE] == -11.0
    assert fault.drive(told()).joint_pos[RF_KNEE] == -111.0


def test_exchanged_joints_are_measured_and_driven_in_each_others_place():
    fault = PlantedFault(PlantedCfg(kind="joints-swapped", where=("lf_hip_yaw", "rf_knee")), DESC)
    pos, target = fault.measurement(measured(), 0).joint_pos, fault.drive(told()).joint_pos
    assert (pos[LF_YAW], pos[RF_KNEE]) == (11.0, 0.0)
    assert (target[LF_YAW], target[RF_KNEE]) == (111.0, 100.0)


def test_of_feedback_alone_the_drives_are_told_what_they_should_be():
    cfg = PlantedCfg(kind="joint-sign", where=("rf_knee",), feedback_only=True)
    assert PlantedFault(cfg, DESC).drive(told()).joint_pos[RF_KNEE] == 111.0


def test_an_imu_turned_by_90_degrees_about_z_reads_forward_as_right():
    fault = PlantedFault(PlantedCfg(kind="imu-rotated", axis="z", value=90.0), DESC)
    out = fault.measurement(measured(), 0)
    # its x axis points to the base's left: what is about the base's y is about its x
    assert out.base_ang_vel_b == pytest.approx([2.0, -1.0, 3.0])
    assert float(rotations.yaw(out.base_quat_w)) == pytest.approx(np.pi / 2)


def test_a_delayed_state_is_that_of_so_long_ago():
    fault = PlantedFault(PlantedCfg(kind="delay", term="state", value=0.01), DESC)
    true = measured()
    seen = []
    for step in range(5):
        true.joint_pos[0] = step
        seen.append(fault.measurement(true, step * 5_000_000).joint_pos[0])
    assert seen == [0.0, 0.0, 0.0, 1.0, 2.0]


def test_a_stale_contact_stays_as_it_was_first():
    fault = PlantedFault(PlantedCfg(kind="contact-stale", where=("lf",)), DESC)
    true = measured()
    fault.measurement(true, 0)
    true.foot_contact[:] = 0.0
    assert fault.measurement(true, 1).foot_contact.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "where"), [("joint-sign", ()), ("joints-swapped", ("lf_knee",)), ("gain", ("elbow",))]
)
def test_joints_that_do_not_fit_are_refused(kind, where):
    with pytest.raises(ConfigError, match="where"):
        PlantedFault(PlantedCfg(kind=kind, where=where), DESC)


@pytest.mark.parametrize(("term", "late_s"), [("", 0.04), ("command", 0.04), ("state", 0.0)])
def test_commands_are_late_unless_the_state_is(term, late_s):
    assert PlantedFault(PlantedCfg(kind="delay", term=term), DESC).command_delay_s == late_s
